// Packs the per-channel operands of an epilogue: converted to accumulators, and padded so that kernels read whole
// vectors. A further operand is one more member here and one more step of FusedEpilogue (tile.h).

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
