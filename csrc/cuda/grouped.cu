// cuda.grouped: selects and launches the kernels of grouped.cuh and grouped_grad_weight.cuh, and states what they
// support.
#include "../correlation.h"
#include "launch.cuh"
#include "registry.cuh"
#include "grouped_grad_weight.cuh"

namespace torchconv::cuda {

namespace {

// Thread blocks wanted for grad_weight: 8 on each of 132 SMs. A constant for the same reason as in gemm.cu.
constexpr int64_t blocks_wanted = 1056;

// Packs the weights and runs one correlation.
template <class T, int G, bool vectors, int R, int ST, int TP>
void launch_correlate(const Correlation& conv, GroupedProblem problem, const T* x, const T* w, T* y) {
  using Acc = AccOf<T>;
  const int64_t channels = problem.K / Channels<T, G, vectors>::V, rows = ceil_div(problem.P, TP),
                columns = conv.cols.out;
  problem.count = conv.N * channels * rows * columns;
  problem.first = Divisor(problem.by_channels ? channels : columns);
  problem.second = Divisor(problem.by_channels ? columns : rows);
  problem.third = Divisor(problem.by_channels ? rows : channels);
  const int64_t weights = conv.rows.kernel * conv.cols.kernel * G * problem.K;
  const Scratch packed(weights * sizeof(Acc));
  launch("grouped_pack", conv, grouped_pack<T>, std::min<int64_t>(ceil_div(weights, threads), 1024), threads, 0,
         problem, w, packed.as<Acc>());
  launch("grouped_correlate", conv, grouped_correlate<T, G, vectors, R, ST, TP>, ceil_div(problem.count, threads),
         threads, 0, problem, x, static_cast<const Acc*>(packed.as<Acc>()), y);
}

// Selects the kernel instance: the kernel height R and the vertical stride ST, which are compile-time constants where
// an instance exists (otherwise R = 0), and TP, the output rows per thread.
template <class T, int G, bool vectors>
void choose_rows(const Correlation& conv, const GroupedProblem& problem, const T* x, const T* w, T* y) {
  const auto go = [&]<int R, int ST, int TP>() { launch_correlate<T, G, vectors, R, ST, TP>(conv, problem, x, w, y); };
  const int64_t R = conv.rows.kernel, stride = conv.rows.stride;
  if constexpr (G <= 4 && sizeof(T) < 8)
    if (R == 1 || conv.rows.dilation == 1) {
      constexpr int TP = G == 1 ? 7 : 4;  // many feature maps have a multiple of 7 rows
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

// Runs the correlations that make up forward or grad_input, one after the other.
template <class T, int G>
void correlate_parts(const Parts& parts, const void* x_, const void* w_, void* y_, const Epilogue& epilogue) {
  for (const Part& part : parts) {
    const Correlation& conv = part.conv;
    const auto *x = static_cast<const T*>(x_), *w = static_cast<const T*>(w_) + part.w_offset;
    T* y = static_cast<T*>(y_) + part.y_offset;
    GroupedProblem problem{};
    problem.x = gather(conv.rows, conv.cols, G, conv.x);
    problem.P = conv.rows.out;
    problem.K = conv.K;
    problem.y = conv.y;
    problem.w = conv.w;
    problem.w_group = conv.w_group;
    problem.by_channels = conv.x.c == 1;
    problem.epilogue = epilogue;
    const bool whole = conv.K % Channels<T, G, true>::V == 0;
    if (whole && has_vectors<T>(x, conv.x, conv.C) && has_vectors<T>(y, conv.y, conv.K))
      choose_rows<T, G, true>(conv, problem, x, w, y);
    else
      choose_rows<T, G, false>(conv, problem, x, w, y);
  }
}

// The largest power of two that is at most `most`.
int64_t power_of_two(int64_t most) {
  int64_t power = 1;
  while (2 * power <= most) power *= 2;
  return power;
}

// Distributes channels, taps and pixels over the threads, accumulates the chunks of pixels (split-K) and reduces them.
template <class T, int G, bool vectors, int R, int ST, int TP>
void launch_weight(const Conv& conv, GroupedGradWeight problem, const T* x, const T* y, T* w) {
  using Acc = AccOf<T>;
  const int64_t channels = problem.K / Channels<T, G, vectors>::V,
                taps = conv.cols.kernel * (R > 1 ? 1 : conv.rows.kernel);
  problem.channel_lanes = conv.x.c == 1 ? std::min<int64_t>(channels, 32) : 1;
  problem.tap_lanes = std::min<int64_t>(taps, threads / problem.channel_lanes);
  problem.pixel_lanes = power_of_two(threads / problem.channel_lanes / problem.tap_lanes);
  problem.channel_blocks = ceil_div(channels, problem.channel_lanes);
  problem.tap_blocks = ceil_div(taps, problem.tap_lanes);
  const int64_t row_blocks = ceil_div(problem.P, TP);
  problem.pixels = counter(row_blocks, conv.cols.out, problem.pixel_lanes);
  problem.pixel_count = conv.N * row_blocks * conv.cols.out;

  // The split-K factor: it yields `blocks_wanted` thread blocks, limits the partial accumulators of all chunks to
  // 64 MiB, and leaves at least 4 pixels to each thread. One chunk, whose accumulators are one copy of the weights, is
  // always allowed.
  constexpr int64_t max_bytes = 64 << 20;
  const int64_t blocks = int64_t(problem.channel_blocks) * problem.tap_blocks;
  const int64_t most = std::max<int64_t>(1, max_bytes / int64_t(sizeof(Acc)) / problem.sums_per_chunk());
  const int64_t chunks = std::min(
      {ceil_div(blocks_wanted, blocks), most, std::max<int64_t>(1, problem.pixel_count / (4 * problem.pixel_lanes))});
  problem.chunk_pixels = ceil_div(problem.pixel_count, chunks);
  problem.chunks = ceil_div(problem.pixel_count, problem.chunk_pixels);

  const Scratch sums(problem.chunks * problem.sums_per_chunk() * sizeof(Acc));
  launch("grouped_grad_weight", conv, grouped_grad_weight<T, G, vectors, R, ST, TP>, blocks * problem.chunks,
         problem.channel_lanes * problem.tap_lanes * problem.pixel_lanes, 0, problem, x, y, sums.as<Acc>());
  launch("grouped_reduce_chunks", conv, grouped_reduce_chunks<T>,
         std::min<int64_t>(ceil_div(problem.sums_per_chunk(), threads), 1024), threads, 0, problem,
         static_cast<const Acc*>(sums.as<Acc>()), w);
}

// Selects the kernel instance of grad_weight as choose_rows does. R = 1 is the instance for any geometry.
template <class T, int G, bool vectors>
void choose_weight_rows(const Conv& conv, const GroupedGradWeight& problem, const T* x, const T* y, T* w) {
  const auto go = [&]<int R, int ST, int TP>() { launch_weight<T, G, vectors, R, ST, TP>(conv, problem, x, y, w); };
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
  GroupedGradWeight problem{};
  problem.x = gather(conv.rows, conv.cols, G, conv.x);
  problem.P = conv.rows.out;
  problem.K = conv.K;
  problem.y = conv.y;
  problem.w = conv.w;
  const bool whole = conv.K % Channels<T, G, true>::V == 0;
  if (whole && has_vectors<T>(x, conv.x, conv.C) && has_vectors<T>(y, conv.y, conv.K))
    choose_weight_rows<T, G, true>(conv, problem, x, y, w);
  else
    choose_weight_rows<T, G, false>(conv, problem, x, y, w);
}

// Calls body.template operator()<T, G>() with the C++ type of the problem's dtype and its channels per group.
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

void forward(const AnyPlan& plan, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  const Conv& conv = plan.get<Conv>();
  with_types(conv, [&]<class T, int G>() { correlate_parts<T, G>(forward_parts(conv), x, w, y, epilogue); });
}

void grad_input(const AnyPlan& plan, const void* y, const void* w, void* x) {
  const Conv& conv = plan.get<Conv>();
  with_types(conv, [&]<class T, int G>() { correlate_parts<T, G>(grad_input_parts(conv), y, w, x, {}); });
}

void grad_weight(const AnyPlan& plan, const void* x, const void* y, void* w) {
  const Conv& conv = plan.get<Conv>();
  with_types(conv, [&]<class T, int G>() { grad_weight_of<T, G>(conv, x, y, w); });
}

// 32-bit sizes, groups of 1, 2, 4 or 8 channels on both sides, at most 64 stride phases, and fewer than 2^31 results
// and weights, which the kernels number in 32 bits.
bool supports(const Conv& conv, Op op) {
  const int64_t G = conv.C_per_group();
  if (!fits(conv) || is_empty(conv) || G != conv.K_per_group() || (G != 1 && G != 2 && G != 4 && G != 8)) return false;
  if (op == Op::grad_input && grad_input_phases(conv) > 64) return false;
  const bool backward = op == Op::grad_input;
  const double rows = backward ? conv.rows.in : conv.rows.out, cols = backward ? conv.cols.in : conv.cols.out;
  return double(conv.N) * conv.K * rows * cols < max_blocks &&
         double(conv.rows.kernel) * conv.cols.kernel * conv.K < max_blocks;
}

}  // namespace

Implementation grouped() {
  return {
      .name = "cuda.grouped",
      .device = Device::cuda,
      .available = has_sm80,
      .suits = suits_always,
      .supported = "groups of 1, 2, 4 or 8 channels on both sides, and results of up to 2^31 elements",
      .suited = "every problem that it supports",
      .plan = make_plan<supports>,
      .describe = [](const AnyPlan&, Op) { return std::string("a thread computes several rows of an output column"); },
      .forward = forward,
      .grad_input = grad_input,
      .grad_weight = grad_weight};
}

}  // namespace torchconv::cuda
