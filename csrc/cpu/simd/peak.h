// The yardstick: multiplications and additions that wait for nothing, in GFLOP/s of one thread.
inline double fma_peak() {
  using V = Simd<float>::V;
  constexpr int chains = 12, steps = 4096;
  double best = 0;
  for (int trial = 0; trial < 40; ++trial) {
    V sum[chains];
    unroll<chains>([&](auto c) __attribute__((always_inline)) { sum[c] = broadcast(float(c)); });
    const V factor = broadcast(0.5f);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i)
      unroll<chains>([&](auto c) __attribute__((always_inline)) { sum[c] = fma(sum[c], factor, factor); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * lanes<float> * chains * steps / seconds.count() * 1e-9);
    V all = sum[0];
    unroll<chains>([&](auto c) __attribute__((always_inline)) { all = all + sum[c]; });
    volatile float used = all[0];
    (void)used;
  }
  return best;
}
