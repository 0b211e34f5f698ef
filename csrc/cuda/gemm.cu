// cuda.sm80.gemm: selects and launches the kernels of gemm.cuh and gemm_grad_weight.cuh, and states what they support.
#include "../correlation.h"
#include "gemm.cuh"
#include "gemm_grad_weight.cuh"
#include "launch.cuh"
#include "registry.cuh"

namespace torchconv::cuda {

namespace {

// Roughly the number of thread blocks that fill the device (an H100 has 132 SMs). It is a constant rather than a query
// so that results do not depend on the device.
constexpr int64_t full_grid = 132;

// Packed weights are zero-padded. Problems whose packed weights exceed twice the weights plus this number of elements
// are left to other implementations.
constexpr int64_t max_zeros = 16 << 20;

// Packs the weights and runs one correlation with tiles of BN output channels.
template <class Math, template <class> class Reader, int BN>
void launch_correlate(const Correlation& conv, CorrelateParams product, const typename Math::Element* x,
                      const typename Math::Element* w, typename Math::Element* y) {
  using T = typename Math::Element;
  product.packed_rows = ceil_div(product.K, BN) * BN;
  product.packed_columns = ceil_div(product.x.width(), depth<T>) * depth<T>;
  const Scratch packed(product.packed_size() * sizeof(T)), taps(product.tap_count<T>() * sizeof(Tap));
  launch("pack_weights", conv, pack_weights<T>, std::min(ceil_div(product.packed_size(), threads), 8 * full_grid),
         threads, 0, product, w, packed.as<T>(), taps.as<Tap>());
  launch("correlate", conv, correlate<Math, Reader, BN>,
         ceil_div(product.pixels, tile_rows) * (product.packed_rows / BN) * product.groups, threads,
         Shared<Math, BN>::bytes, product, x, packed.as<T>(), taps.as<Tap>(), y);
}

// Selects BN, the output channels per thread block: 32, 64 or 128. 128 only if the grid still fills the device, and not
// for float64.
template <class Math, template <class> class Reader>
void choose_width(const Correlation& conv, const CorrelateParams& product, const typename Math::Element* x,
                  const typename Math::Element* w, typename Math::Element* y) {
  const int64_t tiles = ceil_div(product.pixels, tile_rows) * product.groups;
  const bool wide = product.K > 64 && tiles * ceil_div(product.K, 128) >= full_grid;
  if (product.K <= 32) return launch_correlate<Math, Reader, 32>(conv, product, x, w, y);
  if constexpr (sizeof(typename Math::Element) < 8)
    if (wide) return launch_correlate<Math, Reader, 128>(conv, product, x, w, y);
  launch_correlate<Math, Reader, 64>(conv, product, x, w, y);
}

// Runs the correlations that make up forward or grad_input, one after the other.
template <class Math>
void correlate_parts(const Parts& parts, const void* x_, const void* w_, void* y_, const Epilogue& epilogue) {
  using T = typename Math::Element;
  for (const Part& part : parts) {
    const Correlation& conv = part.conv;
    const auto *x = static_cast<const T*>(x_), *w = static_cast<const T*>(w_) + part.w_offset;
    T* y = static_cast<T*>(y_) + part.y_offset;
    CorrelateParams product{};
    product.x = gather(conv.rows, conv.cols, conv.C_per_group(), conv.x);
    product.P = conv.rows.out;
    product.Q = conv.cols.out;
    product.K = conv.K_per_group();
    product.groups = conv.groups;
    product.pixels = conv.N * conv.rows.out * conv.cols.out;
    product.y = conv.y;
    product.w = conv.w;
    product.w_group = conv.w_group;
    product.y_vectors = has_vectors<T>(y, conv.y, product.K);
    product.epilogue = epilogue;
    if (has_vectors<T>(x, conv.x, product.x.C))
      choose_width<Math, VectorReader>(conv, product, x, w, y);
    else
      choose_width<Math, ScalarReader>(conv, product, x, w, y);
  }
}

// Splits the pixels into chunks (split-K), accumulates each chunk in separate thread blocks and reduces the chunks.
template <class Math, bool y_vectors, bool x_vectors, int BN>
void launch_weight(const Conv& conv, GradWeightParams product, const typename Math::Element* x,
                   const typename Math::Element* y, typename Math::Element* w) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  product.rows = ceil_div(product.y.C, tile_rows);
  product.columns = ceil_div(product.x.width(), BN);
  const int64_t tiles = int64_t(product.rows) * product.columns * product.groups;

  // The split-K factor: it fills the device twice, bounds the pixels of a partial reduction, and bounds the partial
  // accumulators of all chunks. One chunk, whose accumulators are one copy of the weights, is always allowed.
  constexpr int64_t max_chunk_pixels = 1 << 15, max_partial_bytes = 64 << 20;
  constexpr int64_t unit = 8 * depth<T>;  // pixels: a chunk is a multiple of 8 tiles
  const int64_t wanted = std::max(ceil_div(2 * full_grid, tiles), ceil_div(product.pixel_count, max_chunk_pixels));
  const int64_t most = std::max<int64_t>(1, max_partial_bytes / int64_t(sizeof(Acc)) / product.sums_per_chunk());
  const int64_t units = ceil_div(product.pixel_count, unit);
  product.chunk_pixels = ceil_div(units, std::min({wanted, most, units})) * unit;
  product.chunks = ceil_div(product.pixel_count, product.chunk_pixels);

  const Scratch sums(product.chunks * product.sums_per_chunk() * sizeof(Acc));
  launch("correlate_weight", conv, correlate_weight<Math, y_vectors, x_vectors, BN>, tiles * product.chunks, threads,
         stages * (LineMajorTile<T, tile_rows>::bytes() + LineMajorTile<T, BN>::bytes()), product, y, x,
         sums.as<Acc>());
  launch("reduce_chunks", conv, reduce_chunks<T, Acc>,
         std::min(ceil_div(product.sums_per_chunk(), threads), 8 * full_grid), threads, 0, product,
         static_cast<const Acc*>(sums.as<Acc>()), w);
}

// Sets up the problem of grad_weight. y is gathered with one-tap windows, that is, as the matrix [pixels, K].
template <class Math>
void grad_weight_of(const Conv& conv, const void* x_, const void* y_, void* w_) {
  using T = typename Math::Element;
  const auto *x = static_cast<const T*>(x_), *y = static_cast<const T*>(y_);
  auto* w = static_cast<T*>(w_);
  GradWeightParams product{};
  const Axis rows{conv.rows.out, 1, conv.rows.out, 1, 1, 0}, cols{conv.cols.out, 1, conv.cols.out, 1, 1, 0};
  product.y = gather(rows, cols, conv.K_per_group(), conv.y);
  product.x = gather(conv.rows, conv.cols, conv.C_per_group(), conv.x);
  product.groups = conv.groups;
  product.pixels = counter(conv.rows.out, conv.cols.out, depth<T>);
  product.y_walk = walk(product.y, product.pixels);
  product.x_walk = walk(product.x, product.pixels);
  product.pixel_count = conv.N * conv.rows.out * conv.cols.out;
  product.w = conv.w;
  constexpr int BN = sizeof(T) < 8 ? 128 : 64;
  const bool y_vectors = has_vectors<T>(y, conv.y, product.y.C), x_vectors = has_vectors<T>(x, conv.x, product.x.C);
  if (y_vectors && x_vectors) return launch_weight<Math, true, true, BN>(conv, product, x, y, w);
  if (y_vectors) return launch_weight<Math, true, false, BN>(conv, product, x, y, w);
  launch_weight<Math, false, false, BN>(conv, product, x, y, w);
}

// Calls body.template operator()<Math>() with the tile arithmetic for the problem's dtype and TF32 setting.
template <class Body>
void with_math(const Conv& conv, const Body& body) {
  switch (conv.dtype) {
    case Dtype::bfloat16: return body.template operator()<TensorMath<c10::BFloat16>>();
    case Dtype::float16: return body.template operator()<TensorMath<c10::Half>>();
    case Dtype::float64: return body.template operator()<DoubleMath>();
    case Dtype::float32:
      if (conv.tf32) return body.template operator()<TensorMath<float>>();
      return body.template operator()<FloatMath>();
  }
}

void forward(const AnyPlan& plan, const void* x, const void* w, void* y, const Epilogue& epilogue) {
  const Conv& conv = plan.get<Conv>();
  with_math(conv, [&]<class Math>() { correlate_parts<Math>(forward_parts(conv), x, w, y, epilogue); });
}

void grad_input(const AnyPlan& plan, const void* y, const void* w, void* x) {
  const Conv& conv = plan.get<Conv>();
  with_math(conv, [&]<class Math>() { correlate_parts<Math>(grad_input_parts(conv), y, w, x, {}); });
}

void grad_weight(const AnyPlan& plan, const void* x, const void* y, void* w) {
  const Conv& conv = plan.get<Conv>();
  with_math(conv, [&]<class Math>() { grad_weight_of<Math>(conv, x, y, w); });
}

// 32-bit sizes, at most 64 stride phases, grids below max_blocks thread blocks, and packed weights of bounded size. The
// estimates are in double, so that they cannot overflow.
bool supports(const Conv& conv, Op op) {
  if (!fits(conv) || is_empty(conv) || (op == Op::grad_input && grad_input_phases(conv) > 64)) return false;
  const double taps = double(conv.rows.kernel) * conv.cols.kernel, C = conv.C_per_group(), K = conv.K_per_group();
  if (op == Op::grad_weight) {
    const double outputs = double(conv.N) * conv.rows.out * conv.cols.out;
    return outputs < 1 << 30 &&
           (outputs / 512 + 1) * conv.groups * ceil_div(K, tile_rows) * ceil_div(taps * C, 64) < max_blocks;
  }
  const bool forward = op == Op::forward;
  const double in = forward ? C : K, out = forward ? K : C;
  const double packed = conv.groups * ceil_div(out, 32) * 32.0 * (taps * in + 32);
  const double pixels =
      double(conv.N) * (forward ? conv.rows.out : conv.rows.in) * (forward ? conv.cols.out : conv.cols.in);
  return packed <= 2 * taps * conv.C * K + max_zeros &&
         (pixels / tile_rows + 1) * ceil_div(out, 32) * conv.groups < max_blocks;
}

}  // namespace

Implementation sm80_gemm() {
  return {.name = "cuda.sm80.gemm",
          .device = Device::cuda,
          .available = has_sm80,
          .suits = suits_always,
          .supported = "sizes below 2^30, up to 64 phases of a stride, and groups whose weights it can pack",
          .suited = "every problem",
          .plan = make_plan<supports>,
          .describe = [](const AnyPlan&, Op) { return std::string("implicit matrix product"); },
          .forward = forward,
          .grad_input = grad_input,
          .grad_weight = grad_weight};
}

}  // namespace torchconv::cuda
