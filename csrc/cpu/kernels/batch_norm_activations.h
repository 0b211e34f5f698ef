// Activations and their gradients on vectors, for batch normalization.

namespace batch_norm {

// e^v in each lane: 2^n e^r, with n an integer and |r| <= ln(2) / 2. The Taylor polynomial's error is below 6e-9, and
// the result within 2 units in the last place of e^v. Infinity above 88.7, 0 below -87.3, NaN for NaN.
INLINE Simd<float>::V exp(Simd<float>::V v) {
  using V = Simd<float>::V;
  typedef int32_t Bits __attribute__((vector_size(sizeof(V))));
  constexpr float least = -87.3f, most = 88.7f, round = 1.5f * (1 << 23);
  constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // their sum is ln(2)
  constexpr float terms[] = {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f, 1.f, 1.f};
  const V inside = min(broadcast(most), max(broadcast(least), v));
  const V shifted = fma(inside, broadcast(1.44269504f), broadcast(round));  // n in the lowest bits
  const V n = shifted - broadcast(round);
  const V r = fma(n, broadcast(-ln2_low), fma(n, broadcast(-ln2_high), inside));
  V sum = broadcast(1 / 5040.f);
  for (const float term : terms) sum = fma(sum, r, broadcast(term));
  // Twice 2^(n / 2), since n may be 128.
  const Bits half = __builtin_bit_cast(Bits, shifted) >> 1, other = __builtin_bit_cast(Bits, shifted) - half;
  sum = sum * __builtin_bit_cast(V, (half << 23) + 0x3f800000) * __builtin_bit_cast(V, (other << 23) + 0x3f800000);
  return v > broadcast(most) ? broadcast(std::numeric_limits<float>::infinity()) : (v < broadcast(least) ? V{} : sum);
}
INLINE Simd<double>::V exp(Simd<double>::V v) {
  for (int i = 0; i < Simd<double>::lanes; ++i) v[i] = std::exp(v[i]);
  return v;
}

// Half of erfc(v / sqrt(2)), which is the probability of more than v standard deviations, for v >= 0.
// `gauss` is e^(-v^2 / 2).
INLINE Simd<float>::V upper_tail(Simd<float>::V v, Simd<float>::V gauss) {
  // A polynomial in 1 / (1 + 0.21 v), fitted to the tail divided by e^(-v^2 / 2) with a relative error of 2e-8 for v
  // from 0 to 14. Beyond, the tail is below FLT_MIN.
  constexpr float terms[] = {-0.0716632432f, 0.283622794f,  -0.330325606f, 0.349485965f, -0.0939860521f,
                             0.124899857f,   0.0691848251f, 0.0850699607f, 0.0837115054f};
  using V = Simd<float>::V;
  const V t = broadcast(1.f) / fma(broadcast(0.21f), v, broadcast(1.f));
  V sum{};
  for (const float term : terms) sum = fma(sum, t, broadcast(term));
  return sum * t * gauss;
}
INLINE Simd<double>::V upper_tail(Simd<double>::V v, Simd<double>::V) {
  for (int i = 0; i < Simd<double>::lanes; ++i) v[i] = std::erfc(v[i] * 0.70710678118654752) / 2;
  return v;
}

// The normal distribution: the probability of at most v, and the density at v.
template <class V>
struct Normal {
  V probability, density;
};

template <class T>
INLINE Normal<typename Simd<T>::V> normal(typename Simd<T>::V v) {
  using V = typename Simd<T>::V;
  const V gauss = exp(v * v * broadcast(T(-0.5))), tail = upper_tail(v < V{} ? V{} - v : v, gauss);
  return {v > V{} ? broadcast(T(1)) - tail : tail, gauss * broadcast(T(0.39894228040143268))};
}

// An activation and its gradient. The usual ones are known at compile time; of others, `kind` is -1.
template <class T, int kind>
struct ActivationOf {
  using V = typename Simd<T>::V;

  Activation activation;
  T slope;

  INLINE Activation which() const { return kind >= 0 ? Activation(kind) : activation; }

  INLINE V operator()(V v) const {
    switch (which()) {
      case Activation::sigmoid: return sigmoid(v);
      case Activation::silu: return v / (broadcast(T(1)) + exp(V{} - v));
      case Activation::hardswish: return v * ramp(v);
      case Activation::hardsigmoid: return ramp(v);
      case Activation::gelu: return v * normal<T>(v).probability;
      default: return FusedEpilogue<T>{nullptr, which(), slope}(v, 0);
    }
  }

  // The gradient with respect to the activation's input: dz times the derivative. v is that input, or the activation's
  // result if `is_result`.
  INLINE V gradient(V dz, V v, bool is_result) const {
    const V zero{}, one = broadcast(T(1)), three = broadcast(T(3));
    switch (which()) {
      case Activation::none: return dz;
      case Activation::relu: return v <= zero ? zero : dz;
      case Activation::relu6: {
        const V below = v >= broadcast(T(6)) ? zero : dz;
        return v <= zero ? zero : below;
      }
      case Activation::leaky_relu: return v > zero ? dz : dz * broadcast(slope);
      case Activation::sigmoid: {
        const V z = is_result ? v : sigmoid(v);
        return dz * z * (one - z);
      }
      case Activation::tanh: {
        const V z = is_result ? v : (*this)(v);
        return dz * (one - z * z);
      }
      case Activation::silu: {
        const V s = sigmoid(v);
        return dz * s * fma(v, one - s, one);
      }
      case Activation::hardswish: {
        const V below = v >= three ? dz : dz * fma(v, broadcast(T(1) / 3), broadcast(T(0.5)));
        return v <= zero - three ? zero : below;
      }
      case Activation::hardsigmoid: {
        const V below = v >= three ? zero : dz * broadcast(T(1) / 6);
        return v <= zero - three ? zero : below;
      }
      case Activation::gelu: break;
    }
    const auto at = normal<T>(v);
    return dz * fma(v, at.density, at.probability);
  }

 private:
  static INLINE V sigmoid(V v) { return broadcast(T(1)) / (broadcast(T(1)) + exp(V{} - v)); }

  // From 0 at -3 to 1 at 3.
  static INLINE V ramp(V v) { return min(broadcast(T(6)), max(V{}, v + broadcast(T(3)))) * broadcast(T(1) / 6); }
};

// Calls body(ActivationOf).
template <class S, class Body>
void with_activation(const BatchNormShape& shape, const Body& body) {
  using T = Acc<S>;
  switch (shape.activation) {
    case Activation::none: return body(ActivationOf<T, int(Activation::none)>{shape.activation, T(shape.slope)});
    case Activation::relu: return body(ActivationOf<T, int(Activation::relu)>{shape.activation, T(shape.slope)});
    default: return body(ActivationOf<T, -1>{shape.activation, T(shape.slope)});
  }
}

}  // namespace batch_norm
