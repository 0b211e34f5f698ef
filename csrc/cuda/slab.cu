// cuda.slab: which kernel of slab.cuh and slab_weight.cuh a problem gets, and its launch.
#include "../correlation.h"
#include "launch.cuh"
#include "rows.cuh"
#include "slab_weight.cuh"

namespace torchconv::cuda {

namespace {

constexpr int64_t blocks_wanted = 1056;  // of grad_weight: 8 for each processor; a constant, as in gemm.cu

template <class T, int G, bool vectors, int R, int ST, int TP>
void launch_correlate(const Correlation& conv, Slab slab, const T* x, const T* w, T* y) {
  using Sum = SumOf<T>;
  const int64_t channels = slab.K / Channels<T, G, vectors>::V, rows = divide_up(slab.P, TP), columns = conv.cols.out;
  slab.count = conv.N * channels * rows * columns;
  slab.first = Divisor(slab.by_channels ? channels : columns);
  slab.second = Divisor(slab.by_channels ? columns : rows);
  slab.third = Divisor(slab.by_channels ? rows : channels);
  const int64_t weights = conv.rows.kernel * conv.cols.kernel * G * slab.K;
  const Scratch packed(weights * sizeof(Sum));
  launch("slab_pack", conv, slab_pack<T>, std::min<int64_t>(divide_up(weights, threads), 1024), threads, 0, slab, w,
         packed.as<Sum>());
  launch("slab_correlate", conv, slab_correlate<T, G, vectors, R, ST, TP>, divide_up(slab.count, threads), threads, 0,
         slab, x, static_cast<const Sum*>(packed.as<Sum>()), y);
}

template <class T, int G, bool vectors>
void choose_rows(const Correlation& conv, const Slab& slab, const T* x, const T* w, T* y) {
  const auto go = [&]<int R, int ST, int TP>() { launch_correlate<T, G, vectors, R, ST, TP>(conv, slab, x, w, y); };
  const int64_t R = conv.rows.kernel, stride = conv.rows.stride;
  if constexpr (G <= 4 && sizeof(T) < 8)
    if (R == 1 || conv.rows.dilation == 1) {
      constexpr int TP = G == 1 ? 7 : 4;  // many maps have a multiple of 7 rows
      if (R == 1 && stride == 1) return go.template operator()<1, 1, TP>();
      if (R == 2 && stride == 1) return go.template operator()<2, 1, TP>();
      if (R == 3 && stride == 1) return go.template operator()<3, 1, TP>();
      if (R == 3 && stride == 2) return go.template operator()<3, 2, TP>();
      if constexpr (G == 1) {
        if (R == 4 && stride == 1) return go.template operator()<4, 1, 4>();
        if (R == 5 && stride == 1) return go.template operator()<5, 1, 4>();
        if (R == 5 && stride == 2) return go.template operator()<5, 2, 4>();
        if (R == 7 && stride == 1) return go.template operator()<7, 1, 4>();
        if (R == 7 && stride == 2) return go.template operator()<7, 2, 4>();
      }
    }
  go.template operator()<0, 1, 4>();
}

template <class T, int G>
void correlate_parts(const Parts& parts, const void* x_, const void* w_, void* y_, const Epilogue& epilogue) {
  for (const Part& part : parts) {
    const Correlation& conv = part.conv;
    const auto *x = static_cast<const T*>(x_), *w = static_cast<const T*>(w_) + part.w_offset;
    T* y = static_cast<T*>(y_) + part.y_offset;
    Slab slab{};
    slab.x = gather(conv.rows, conv.cols, G, conv.x);
    slab.P = conv.rows.out, slab.K = conv.K;
    slab.y = conv.y, slab.w = conv.w, slab.w_group = conv.w_group;
    slab.by_channels = conv.x.c == 1;
    slab.epilogue = epilogue;
    const bool whole = conv.K % Channels<T, G, true>::V == 0;
    if (whole && has_vectors<T>(x, conv.x, conv.C) && has_vectors<T>(y, conv.y, conv.K))
      choose_rows<T, G, true>(conv, slab, x, w, y);
    else
      choose_rows<T, G, false>(conv, slab, x, w, y);
  }
}

int64_t power_of_two(int64_t most) {
  int64_t power = 1;
  while (2 * power <= most) power *= 2;
  return power;
}

template <class T, int G, bool vectors, int R, int ST, int TP>
void launch_weight(const Conv& conv, SlabWeight slab, const T* x, const T* y, T* w) {
  using Sum = SumOf<T>;
  const int64_t channels = slab.K / Channels<T, G, vectors>::V,
                taps = conv.cols.kernel * (R > 1 ? 1 : conv.rows.kernel);
  slab.channel_lanes = conv.x.c == 1 ? std::min<int64_t>(channels, 32) : 1;
  slab.tap_lanes = std::min<int64_t>(taps, threads / slab.channel_lanes);
  slab.pixel_lanes = power_of_two(threads / slab.channel_lanes / slab.tap_lanes);
  slab.channel_blocks = divide_up(channels, slab.channel_lanes), slab.tap_blocks = divide_up(taps, slab.tap_lanes);
  const int64_t row_blocks = divide_up(slab.P, TP);
  slab.pixels = counter(row_blocks, conv.cols.out, slab.pixel_lanes);
  slab.pixel_count = conv.N * row_blocks * conv.cols.out;

  // Enough chunks to fill the device; few enough that their sums take 64 MiB at most, or as much as one copy of the
  // weights, and that a thread has a few pixels.
  constexpr int64_t most_bytes = 64 << 20;
  const int64_t blocks = int64_t(slab.channel_blocks) * slab.tap_blocks;
  const int64_t most = std::max<int64_t>(1, most_bytes / int64_t(sizeof(Sum)) / slab.sums_per_chunk());
  const int64_t chunks = std::min(
      {divide_up(blocks_wanted, blocks), most, std::max<int64_t>(1, slab.pixel_count / (4 * slab.pixel_lanes))});
  slab.chunk_pixels = divide_up(slab.pixel_count, chunks), slab.chunks = divide_up(slab.pixel_count, slab.chunk_pixels);

  const Scratch sums(slab.chunks * slab.sums_per_chunk() * sizeof(Sum));
  launch("slab_weight", conv, slab_weight<T, G, vectors, R, ST, TP>, blocks * slab.chunks,
         slab.channel_lanes * slab.tap_lanes * slab.pixel_lanes, 0, slab, x, y, sums.as<Sum>());
  launch("slab_add_chunks", conv, slab_add_chunks<T>,
         std::min<int64_t>(divide_up(slab.sums_per_chunk(), threads), 1024), threads, 0, slab,
         static_cast<const Sum*>(sums.as<Sum>()), w);
}

template <class T, int G, bool vectors>
void choose_weight_rows(const Conv& conv, const SlabWeight& slab, const T* x, const T* y, T* w) {
  const auto go = [&]<int R, int ST, int TP>() { launch_weight<T, G, vectors, R, ST, TP>(conv, slab, x, y, w); };
  const int64_t R = conv.rows.kernel, stride = conv.rows.stride;
  if constexpr (G <= 4 && sizeof(T) < 8)
    if (conv.rows.dilation == 1) {
      constexpr int TP = G == 1 ? 7 : 4;
      if (R == 3 && stride == 1) return go.template operator()<3, 1, TP>();
      if (R == 3 && stride == 2) return go.template operator()<3, 2, TP>();
      if constexpr (G == 1) {
        if (R == 5 && stride == 1) return go.template operator()<5, 1, 4>();
        if (R == 5 && stride == 2) return go.template operator()<5, 2, 4>();
        if (R == 7 && stride == 1) return go.template operator()<7, 1, 4>();
      }
    }
  go.template operator()<1, 1, 4>();
}

template <class T, int G>
void grad_weight_of(const Conv& conv, const void* x_, const void* y_, void* w_) {
  const auto *x = static_cast<const T*>(x_), *y = static_cast<const T*>(y_);
  auto* w = static_cast<T*>(w_);
  SlabWeight slab{};
  slab.x = gather(conv.rows, conv.cols, G, conv.x);
  slab.P = conv.rows.out, slab.K = conv.K;
  slab.y = conv.y, slab.w = conv.w;
  const bool whole = conv.K % Channels<T, G, true>::V == 0;
  if (whole && has_vectors<T>(x, conv.x, conv.C) && has_vectors<T>(y, conv.y, conv.K))
    choose_weight_rows<T, G, true>(conv, slab, x, y, w);
  else
    choose_weight_rows<T, G, false>(conv, slab, x, y, w);
}

// Calls body.template operator()<T, G>() for the problem.
template <class Body>
void with_types(const Conv& conv, const Body& body) {
  const auto with_group = [&]<class T>() {
    switch (conv.C_per_group()) {
      case 1: return body.template operator()<T, 1>();
      case 2: return body.template operator()<T, 2>();
      case 4: return body.template operator()<T, 4>();
      case 8: return body.template operator()<T, 8>();
    }
  };
  switch (conv.dtype) {
    case Dtype::bfloat16: return with_group.template operator()<c10::BFloat16>();
    case Dtype::float16: return with_group.template operator()<c10::Half>();
    case Dtype::float32: return with_group.template operator()<float>();
    case Dtype::float64: return with_group.template operator()<double>();
  }
}

void forward(const Conv& conv, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  with_types(conv, [&]<class T, int G>() { correlate_parts<T, G>(forward_parts(conv), x, w, y, epilogue); });
}

void grad_input(const Conv& conv, const void* y, const void* w, void* x) {
  with_types(conv, [&]<class T, int G>() { correlate_parts<T, G>(grad_input_parts(conv), y, w, x, {}); });
}

void grad_weight(const Conv& conv, const void* x, const void* y, void* w) {
  with_types(conv, [&]<class T, int G>() { grad_weight_of<T, G>(conv, x, y, w); });
}

bool supports(const Conv& conv, Op op) {
  const int64_t G = conv.C_per_group();
  if (!fits(conv) || is_empty(conv) || G != conv.K_per_group() || (G != 1 && G != 2 && G != 4 && G != 8)) return false;
  if (op == Op::grad_input && grad_input_phases(conv) > 64) return false;
  const bool backward = op == Op::grad_input;
  const double rows = backward ? conv.rows.in : conv.rows.out, cols = backward ? conv.cols.in : conv.cols.out;
  return double(conv.N) * conv.K * rows * cols < most_blocks &&
         double(conv.rows.kernel) * conv.cols.kernel * conv.K < most_blocks;
}

bool suits(const Conv&, Op) { return true; }

}  // namespace

Implementation slab() {
  Implementation row;
  row.name = "cuda.slab";
  row.device = Device::cuda;
  row.available = has_sm80;
  row.supports = supports;
  row.suits = suits;
  row.does = "groups of 1, 2, 4 or 8 channels on both sides, and results of up to 2^31 elements";
  row.is_for = "every problem that it does";
  row.forward = forward, row.grad_input = grad_input, row.grad_weight = grad_weight;
  return row;
}

}  // namespace torchconv::cuda
