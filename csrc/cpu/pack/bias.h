// Packs the bias of an epilogue: converted to accumulators, and padded so that kernels read whole vectors.

// Element k of the bias goes to position k / run * pitch + k % run. Returns null if there is no bias.
template <class S>
const Acc<S>* pack_bias(const Epilogue& epilogue, int64_t K, int64_t run, int64_t pitch, Scratch& scratch) {
  if (!epilogue.bias) return nullptr;
  Acc<S>* packed = scratch.take<Acc<S>>(ceil_div(K, run) * pitch);
  const S* bias = static_cast<const S*>(epilogue.bias);
  for (int64_t k = 0; k < K; ++k) packed[k / run * pitch + k % run] = Acc<S>(bias[k * epilogue.bias_stride]);
  return packed;
}
