// Measures the peak rate of one thread, for benchmarks: independent chains of multiply-adds, in registers only. Returns
// the number of floating-point operations done.
inline double multiply_adds() {
  using V = Simd<float>::V;
  constexpr int chains = 12, steps = 4096;
  V acc[chains];
  unroll<chains>([&](auto c) __attribute__((always_inline)) { acc[c] = broadcast(float(c)); });
  const V factor = broadcast(0.5f);
  for (int i = 0; i < steps; ++i)
    unroll<chains>([&](auto c) __attribute__((always_inline)) { acc[c] = fma(acc[c], factor, factor); });
  V all = acc[0];
  unroll<chains>([&](auto c) __attribute__((always_inline)) { all = all + acc[c]; });
  volatile float used = all[0];
  (void)used;
  return 2.0 * lanes<float> * chains * steps;
}
