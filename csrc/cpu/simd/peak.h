// The yardstick: multiplications and additions that wait for nothing. Returns how many operations that was.
inline double multiply_adds() {
  using V = Simd<float>::V;
  constexpr int chains = 12, steps = 4096;
  V sum[chains];
  unroll<chains>([&](auto c) __attribute__((always_inline)) { sum[c] = broadcast(float(c)); });
  const V factor = broadcast(0.5f);
  for (int i = 0; i < steps; ++i)
    unroll<chains>([&](auto c) __attribute__((always_inline)) { sum[c] = fma(sum[c], factor, factor); });
  V all = sum[0];
  unroll<chains>([&](auto c) __attribute__((always_inline)) { all = all + sum[c]; });
  volatile float used = all[0];
  (void)used;
  return 2.0 * lanes<float> * chains * steps;
}
