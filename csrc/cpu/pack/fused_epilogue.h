// The epilogue in kernels: bias and activation, applied to vectors of accumulators before the store. A further operand
// is one more member of both structs and one more step of FusedEpilogue.

// The epilogue of an accumulator before its store: activation(accumulator + bias). NaN passes through every activation.
template <class T>
struct FusedEpilogue {
  const T* bias = nullptr;  // [lane], readable up to the end of the last lane's vector; or null
  Activation activation = Activation::none;
  T slope = 0;

  bool is_identity() const { return !bias && activation == Activation::none; }

  INLINE typename Simd<T>::V operator()(typename Simd<T>::V v, int64_t lane) const {
    using V = typename Simd<T>::V;
    if (bias) v = v + load(bias + lane);
    switch (activation) {
      case Activation::none: return v;
      case Activation::relu: return max(V{}, v);
      case Activation::relu6: return min(broadcast(T(6)), max(V{}, v));
      case Activation::leaky_relu: return v < V{} ? v * broadcast(slope) : v;
      default: return lane_by_lane(v);
    }
  }

  // The activations without a vector form.
  __attribute__((noinline)) typename Simd<T>::V lane_by_lane(typename Simd<T>::V v) const {
    for (int i = 0; i < Simd<T>::lanes; ++i) v[i] = activate(activation, v[i], slope);
    return v;
  }
};

// The epilogue of a call, with its per-channel operands converted to accumulators, and padded so that kernels read
// whole vectors.
template <class S>
struct PackedEpilogue {
  using T = Acc<S>;

  const T* bias = nullptr;  // element k at k / run * pitch + k % run; null if there is no bias
  Activation activation;
  T slope;

  PackedEpilogue(const Epilogue& epilogue, int64_t K, int64_t run, int64_t pitch, Scratch& scratch)
      : activation(epilogue.activation), slope(T(epilogue.slope)) {
    if (!epilogue.bias) return;
    T* packed = scratch.take<T>(ceil_div(K, run) * pitch);
    const S* from = static_cast<const S*>(epilogue.bias);
    for (int64_t k = 0; k < K; ++k) packed[k / run * pitch + k % run] = T(from[k * epilogue.bias_stride]);
    bias = packed;
  }

  // For results whose lane 0 is at position `first`.
  INLINE FusedEpilogue<T> at(int64_t first) const { return {bias ? bias + first : nullptr, activation, slope}; }

  // Without the bias, for kernels whose lanes are pixels.
  FusedEpilogue<T> activation_only() const { return {nullptr, activation, slope}; }
};
