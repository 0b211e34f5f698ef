// spatial: forward and grad_input for few output channels, and for NCHW. See docs/kernels.md.
//
// Lanes are neighbouring output pixels of a row, so that all of them do useful work, however few output channels there
// are. The patch is a plane of pixels for each input channel, and a tap is an offset into it. A register tile is some
// output channels x some vectors of pixels. Tensors whose pixels are contiguous need no transposition.

namespace spatial {

// Maximum output channels of a register tile of NV vectors: as many as fit into the registers, which hold the
// accumulators, either the broadcast weights or the vectors of pixels, whichever are fewer, and one more vector.
template <int NV>
constexpr int max_channels() {
  int channels = 1;
  while ((channels + 1) * NV + std::min(channels + 1, NV) + 1 <= registers) ++channels;
  return channels;
}
inline int max_channels_of(int NV) {
  return NV == 8 ? max_channels<8>() : NV == 4 ? max_channels<4>() : max_channels<2>();
}

// Vectors of the widest register tile that takes K output channels.
inline int vectors_for(int64_t K) { return K <= max_channels<8>() ? 8 : K <= max_channels<4>() ? 4 : 2; }

constexpr double max_planes_bytes = 8 << 20;  // the patches of a block as planes, in scratch memory

// How a correlation of tensors of S is cut into tasks and tiles.
template <class S>
struct Plan {
  static constexpr int64_t block_pixels = 2048;      // of a block, where the patch is small enough
  static constexpr int64_t min_block_pixels = 512;   // below this, a block of the reduction gets fewer channels
  static constexpr int64_t few_channels = 16;        // a block of no more channels is not cut any further
  static constexpr int64_t patch_bytes = 256 << 10;  // the patch of a block: a quarter of L2 (1 MiB)
  static constexpr int64_t weights_bytes = 4 << 20;  // the packed weights, in scratch memory
  static constexpr int64_t buffer_bytes = 4 << 20;   // the staging buffer, for results in another layout or dtype
  static_assert(weights_bytes + buffer_bytes + max_planes_bytes < scratch_per_thread);

  int NV;            // vectors of a register tile
  int64_t tiles;     // register tiles that the output channels of a group are split into
  int64_t channels;  // input channels of a block of the reduction
  bool possible;
  Blocks<S> blocks;

  std::string describe() const {
    return "blocks of " + counted(blocks.pixels(), "pixel") + " and " + counted(channels, "input channel") +
           ", tiles of " + counted(NV, "vector") + " of pixels";
  }
};

// The layout of a patch as planes: element (i, j) of channel c is at c * plane + i * row + (j % split) * segment +
// j / split. The columns under one tap are contiguous for any stride (`split` is the stride).
template <class S>
struct PlaneLayout {
  int64_t split;
  int64_t segment, row, plane, image;  // elements from one to the next

  PlaneLayout(const Patch& patch, int64_t channels) {
    constexpr int L = lanes<S>;
    split = patch.cols.step;
    segment = ceil_div(patch.cols.size, split) + L;  // the last vector reads beyond the row
    row = split * segment;
    plane = (patch.rows.size * row / L | 1) * L + L;  // spreads planes over the cache sets
    image = channels * plane;
  }

  // The offset in the patch of tap t of [c][r][s].
  int64_t offset(const Conv& conv, int64_t t) const {
    const int64_t s = t % conv.cols.kernel, r = t / conv.cols.kernel % conv.rows.kernel;
    const int64_t c = t / conv.cols.kernel / conv.rows.kernel;
    const int64_t i = r * conv.rows.dilation, j = s * conv.cols.dilation;
    return c * plane + i * row + j % split * segment + j / split;
  }
};

// The bytes of a block's patches as planes. A stride may be far longer than a row, which then consists mostly of the
// ends of segments.
template <class S>
double planes_bytes(const Conv& conv, const Blocks<S>& blocks, int64_t channels) {
  const Patch patch(conv, {0, 1, 0, blocks.rows, 0, blocks.cols}, 1);
  const double segment = double(ceil_div(patch.cols.size, patch.cols.step)) + lanes<S>;
  return segment * patch.cols.step * patch.rows.size * channels * blocks.images * sizeof(Acc<S>);
}

// A correlation of one tap, without stride and padding, becomes one of a single long row if the rows of both tensors
// are contiguous. Other correlations are returned unchanged.
inline Correlation flattened(const Correlation& conv) {
  const auto plain = [](const Axis& axis) {
    return axis.kernel == 1 && axis.stride == 1 && axis.pad == 0 && axis.in == axis.out;
  };
  Correlation flat = conv;
  if (!plain(conv.rows) || !plain(conv.cols) || conv.x.h != conv.cols.in * conv.x.w ||
      conv.y.h != conv.cols.out * conv.y.w)
    return flat;
  flat.cols.in = flat.cols.out = conv.rows.in * conv.cols.in;
  flat.rows.in = flat.rows.out = 1;
  return flat;
}

// Plans a correlation, which must be flattened. Not `possible` if it exceeds the working memory.
template <class S>
Plan<S> plan(const Correlation& conv) {
  constexpr int size = sizeof(Acc<S>);
  using Plan = spatial::Plan<S>;
  const int64_t C = conv.C_per_group(), K = conv.K_per_group(), taps = conv.rows.kernel * conv.cols.kernel;
  const auto blocks = [&](int64_t channels) {
    return Blocks<S>(conv, Plan::block_pixels, channels, Plan::patch_bytes);
  };
  int64_t channels = C;
  while (channels > Plan::few_channels &&
         blocks(channels).pixels() < std::min(Plan::min_block_pixels, conv.rows.out * conv.cols.out))
    channels = ceil_div(channels, 2);
  const int NV = vectors_for(K);
  Plan plan{.NV = NV,
            .tiles = ceil_div(K, max_channels_of(NV)),
            .channels = channels,
            .possible = false,
            .blocks = blocks(channels)};
  // Fewer images per block if they do not fit: whether the plan is possible must not depend on the batch.
  const auto fits = [&] {
    const double vectors = double(plan.blocks.images) * plan.blocks.rows * (plan.blocks.cols / lanes<S> + 1);
    return plan.blocks.patch_bytes <= 2.0 * Plan::patch_bytes &&
           planes_bytes(conv, plan.blocks, channels) <= max_planes_bytes &&
           vectors * K * lanes<S> * size <= Plan::buffer_bytes;
  };
  while (plan.blocks.images > 1 && !fits()) --plan.blocks.images;
  plan.possible = fits() && double(conv.K) * C * taps * size <= Plan::weights_bytes;
  return plan;
}

// The estimated cycles per output pixel, in float32, with `products` multiplications, besides copies. A multiplication
// of vectors takes 1.05 cycles, or 1.3 where vectors are not aligned and cross cache lines. 8 cycles are spent whatever
// the number of channels.
inline double cost_of_products(double products, bool aligned, const Conv& conv) {
  constexpr int L = Simd<float>::lanes;
  const double filled = double(conv.cols.out) / round_up(conv.cols.out, L);
  return products / L / filled * (aligned ? 1.05 : 1.3) + 8;
}

// The estimated cycles per pixel of a copy of `channels` channels: `contiguous` for each where pixels are contiguous,
// 0.7 for a transposition, or 2 for single elements.
inline double cost_of_copy(const Strides& strides, int64_t channels, double contiguous) {
  return (strides.w == 1 ? contiguous : strides.c == 1 ? 0.7 : 2) * channels;
}

// The estimated cycles per output pixel of a correlation. A row of y takes 0.6 to store, since the rows of a tile are
// those of different channels.
inline double cost(const Correlation& conv) {
  const double taps = double(conv.rows.kernel) * conv.cols.kernel;
  const bool skips = conv.cols.kernel <= 1 && conv.cols.stride > 1;  // pixels of x
  return cost_of_products(taps * conv.C_per_group() * conv.K_per_group(), taps <= 1, conv) +
         cost_of_copy(conv.x, conv.C_per_group(), skips ? 0.7 : 0.1) + cost_of_copy(conv.y, conv.K_per_group(), 0.6);
}

// The arguments of spatial_tile. Vector v of pixels of row m (an output channel) is the sum over t of
// w[t * MR + m] * x[at[v] + offset[t]]. Its first width[v] lanes are stored at c[m * pitch + to[v]], or added to the
// values there.
template <class T>
struct SpatialTile {
  const T *x, *w;
  const int64_t *at, *offset;
  int64_t taps;
  T* c;
  int64_t pitch;
  const int64_t *to, *width;
  bool add;                       // add to C instead of overwriting it
  const T* bias;                  // [row], or null
  const FusedEpilogue<T>* fused;  // or null
};

// Computes a register tile of MR output channels x NV vectors of pixels.
template <class T, int MR, int NV>
void spatial_tile(const SpatialTile<T>& product) {
  using V = typename Simd<T>::V;
  constexpr int L = Simd<T>::lanes;
  V acc[MR][NV] = {};
  const T* x[NV];
  const T* w = product.w;
  unroll<NV>([&](auto v) __attribute__((always_inline)) { x[v] = product.x + product.at[v]; });
  for (int64_t t = 0; t < product.taps; ++t, w += MR) {
    const int64_t offset = product.offset[t];
    if constexpr (MR < NV) {
      V weights[MR];
      unroll<MR>([&](auto m) __attribute__((always_inline)) { weights[m] = broadcast(w[m]); });
      fold<NV * MR>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
        ((acc[i % MR][i / MR] = fma(weights[i % MR], load(x[i / MR] + offset), acc[i % MR][i / MR])), ...);
      });
    } else {
      V pixels[NV];
      unroll<NV>([&](auto v) __attribute__((always_inline)) { pixels[v] = load(x[v] + offset); });
      fold<MR * NV>([&]<int... i>(Indices<i...>) __attribute__((always_inline)) {
        ((acc[i / NV][i % NV] = fma(broadcast(w[i / NV]), pixels[i % NV], acc[i / NV][i % NV])), ...);
      });
    }
  }
  unroll<MR * NV>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = i / NV, v = i % NV;
    T* c = product.c + m * product.pitch + product.to[v];
    V value = acc[m][v];
    if (product.add) value = value + (product.width[v] == L ? load(c) : load(c, product.width[v]));
    if (product.bias) value = value + broadcast(product.bias[m]);
    if (product.fused) value = (*product.fused)(value, 0);
    if (product.width[v] == L) {
      store(c, value);
    } else {
      store(c, value, product.width[v]);
    }
  });
}

// Minimum output channels of a tile of NV vectors. With fewer in all, vectors_for(K) is larger; with several tiles, the
// output channels are split evenly.
template <int NV>
constexpr int min_channels =
    NV == 8 ? 1 : std::min(max_channels<2 * NV>() + 1, NV == 4 ? max_channels<4>() : (max_channels<2>() + 1) / 2);

template <class T, int NV, int... m>
constexpr auto table(std::integer_sequence<int, m...>) {
  return std::array<void (*)(const SpatialTile<T>&), sizeof...(m)>{spatial_tile<T, min_channels<NV> + m, NV>...};
}

// spatial_tile with NV vectors, indexed by the number of output channels minus min_channels.
template <class T, int NV>
constexpr auto spatial_tiles =
    table<T, NV>(std::make_integer_sequence<int, max_channels<NV>() - min_channels<NV> + 1>());

// Computes a register tile of MR output channels x NV vectors of pixels.
template <class T>
INLINE void multiply_tile(const SpatialTile<T>& product, int64_t MR, int NV) {
  switch (NV) {
    case 8: spatial_tiles<T, 8>[MR - min_channels<8>](product); break;
    case 4: spatial_tiles<T, 4>[MR - min_channels<4>](product); break;
    default: spatial_tiles<T, 2>[MR - min_channels<2>](product);
  }
}

// Fills the planes of image n with channels [c, c + count), and with zeros for the padding.
template <class S>
void read_planes(const Correlation& conv, int64_t n, const Patch& patch, const PlaneLayout<S>& planes, int64_t c,
                 int64_t count, const S* x, Acc<S>* to) {
  using T = Acc<S>;
  const int64_t top = patch.rows.begin(conv.rows), bottom = patch.rows.end(conv.rows);
  const int64_t left = patch.cols.begin(conv.cols), right = std::max(left, patch.cols.end(conv.cols));
  for (int64_t i = 0; i < patch.rows.size; ++i)
    for (int64_t j = 0; j < planes.split; ++j) {
      T* segment = to + i * planes.row + j * planes.segment;
      // Elements [begin, end) of this segment, columns j + split * [begin, end) of the patch, are in the input.
      const int64_t begin = ceil_div(std::max<int64_t>(0, left - j), planes.split);
      const int64_t end = std::max(begin, ceil_div(std::max<int64_t>(0, right - j), planes.split));
      const bool exists = i >= top && i < bottom && begin < end;
      for (int64_t k = 0; k < count; ++k) {
        T* channel = segment + k * planes.plane;
        std::fill_n(channel, exists ? begin : planes.segment, T(0));
        if (exists) std::fill(channel + end, channel + planes.segment, T(0));
      }
      if (!exists) continue;
      const int64_t h = patch.rows.first + i * patch.rows.source_step;
      const int64_t w = patch.cols.first + (j + begin * planes.split) * patch.cols.source_step;
      // A single pixel has no step to the next one: the product may overflow 64 bits.
      const int64_t step = end - begin > 1 ? conv.x.w * patch.cols.source_step * planes.split : conv.x.w;
      read_tile<S>({.data = x + n * conv.x.n + c * conv.x.c + h * conv.x.h + w * conv.x.w,
                    .rows = count,
                    .cols = end - begin,
                    .row_stride = conv.x.c,
                    .col_stride = step},
                   segment + begin, planes.plane);
    }
}

// A correlation, which must be flattened, with packed weights and bias: what its tasks share.
template <class S>
struct PackedCorrelation {
  using T = Acc<S>;

  const Correlation& conv;
  const Plan<S>& plan;
  const int64_t C, K, taps;          // of a group: input and output channels; taps of one channel
  const PackedEpilogue<S> epilogue;  // [output channel of the whole tensor]
  const FusedEpilogue<T> activation;
  T* const weights;  // [group][tile][c][r][s][output channel of the tile]

  PackedCorrelation(const Correlation& conv, const Plan<S>& plan, const S* w, const Epilogue& epilogue,
                    Scratch& scratch)
      : conv(conv),
        plan(plan),
        C(conv.C_per_group()),
        K(conv.K_per_group()),
        taps(conv.rows.kernel * conv.cols.kernel),
        epilogue(epilogue, conv.K, conv.K, conv.K, scratch),
        activation(this->epilogue.activation_only()),
        weights(scratch.take<T>(conv.K * C * taps)) {
    parallel_for(conv.groups * plan.tiles, double(K) / plan.tiles * C * taps,
                 [&](int64_t task) { pack_tile(task / plan.tiles, task % plan.tiles, w); });
  }

  // The first output channel of a tile.
  int64_t tile_begin(int64_t tile) const { return split_begin(K, plan.tiles, tile); }

  void pack_tile(int64_t group, int64_t tile, const S* w) const {
    const int64_t k = tile_begin(tile), MR = tile_begin(tile + 1) - k;
    const S* from = w + group * conv.w_group + k * conv.w.n;
    T* to = weights + (group * K + k) * C * taps;
    for (int64_t r = 0; r < conv.rows.kernel; ++r)
      for (int64_t s = 0; s < conv.cols.kernel; ++s, to += MR)
        read_tile<S>({.data = from + r * conv.w.h + s * conv.w.w,
                      .rows = C,
                      .cols = MR,
                      .row_stride = conv.w.c,
                      .col_stride = conv.w.n},
                     to, taps * MR);
  }
};

// A task of a correlation: a block of output pixels, for all output channels of a group.
template <class S>
struct BlockTask {
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  const PackedCorrelation<S>& packed;
  const Correlation& conv;
  const Plan<S>& plan;
  const int64_t group;
  const Block block;
  const int64_t images, rows, cols;
  const Patch patch;
  const PlaneLayout<S> planes;
  // The vectors of output pixels of the block, in sets of NV vectors.
  const int64_t vectors_per_row, vectors, sets;
  const bool direct;  // accumulators are stored straight to y; otherwise to a staging buffer
  // Vector v begins at at[v] in the patch and at to[v] in the result, of which width[v] lanes are stored.
  int64_t *at, *to, *width;
  int64_t* offset;  // of each tap in the patch, [c][r][s]
  T* copy;          // the patches, [image][plane]
  S* corner;        // the first output of the block in y
  T* accumulators;  // in y or in the staging buffer
  int64_t pitch;    // from one output channel of `accumulators` to the next

  BlockTask(const PackedCorrelation<S>& packed, int64_t group, const Block& block, S* y, Scratch& scratch)
      : packed(packed),
        conv(packed.conv),
        plan(packed.plan),
        group(group),
        block(block),
        images(block.n_end - block.n),
        rows(block.p_end - block.p),
        cols(block.q_end - block.q),
        patch(conv, block, 1),
        planes(patch, plan.channels),
        vectors_per_row(ceil_div(cols, L)),
        vectors(images * rows * vectors_per_row),
        sets(ceil_div(vectors, plan.NV)),
        direct(std::is_same_v<S, T> && conv.y.w == 1 && plan.channels >= packed.C) {
    lay_out_vectors(scratch);
    offset = scratch.take<int64_t>(plan.channels * packed.taps);
    for (int64_t t = 0; t < plan.channels * packed.taps; ++t) offset[t] = planes.offset(conv, t);
    copy = scratch.take<T>(images * planes.image + L);
    corner = y + block.n * conv.y.n + group * packed.K * conv.y.c + block.p * conv.y.h + block.q * conv.y.w;
    pitch = direct ? conv.y.c : sets * plan.NV * L;
    accumulators = direct ? reinterpret_cast<T*>(corner) : scratch.take<T>(packed.K * pitch);
  }

  // The vectors that only fill up the last set compute the last pixels again, and y gets none of their lanes.
  void lay_out_vectors(Scratch& scratch) {
    const int64_t padded = sets * plan.NV;
    at = scratch.take<int64_t>(3 * padded);
    to = at + padded;
    width = to + padded;
    for (int64_t v = 0; v < padded; ++v) {
      const int64_t i = std::min(v, vectors - 1);
      const int64_t q = i % vectors_per_row * L, p = i / vectors_per_row % rows, n = i / vectors_per_row / rows;
      at[v] = n * planes.image + p * patch.rows.step * planes.row + q;
      to[v] = direct ? n * conv.y.n + p * conv.y.h + q : v * L;
      width[v] = !direct ? L : v < vectors ? std::min<int64_t>(L, cols - q) : 0;
    }
  }

  void run(const S* x) const {
    for (int64_t c = 0; c < packed.C; c += plan.channels) {
      const int64_t count = std::min(plan.channels, packed.C - c);
      for (int64_t n = 0; n < images; ++n)
        read_planes(conv, block.n + n, patch, planes, group * packed.C + c, count, x, copy + n * planes.image);
      multiply_channels(c, count);
    }
    if (!direct) store_buffer();
  }

  // Computes all tiles for input channels [c, c + count).
  void multiply_channels(int64_t c, int64_t count) const {
    SpatialTile<T> product{};
    product.x = copy;
    product.pitch = pitch;
    for (int64_t set = 0; set < sets; ++set) {
      product.at = at + set * plan.NV;
      product.to = to + set * plan.NV;
      product.width = width + set * plan.NV;
      for (int64_t tile = 0; tile < plan.tiles; ++tile) multiply_pieces(product, tile, c, count);
    }
  }

  // Computes a tile for input channels [c, c + count), max_reduction products at a time.
  INLINE void multiply_pieces(SpatialTile<T>& product, int64_t tile, int64_t c, int64_t count) const {
    const int64_t k = packed.tile_begin(tile), MR = packed.tile_begin(tile + 1) - k;
    const int64_t taps = count * packed.taps;
    const T* weights = packed.weights + (group * packed.K + k) * packed.C * packed.taps + c * packed.taps * MR;
    product.c = accumulators + k * pitch;
    for (int64_t t = 0; t == 0 || t < taps; t += max_reduction) {
      const bool last = c + plan.channels >= packed.C && t + max_reduction >= taps;
      product.taps = std::min(max_reduction, taps - t);
      product.offset = offset + t;
      product.w = weights + t * MR;
      product.add = c > 0 || t > 0;
      product.bias = last ? packed.epilogue.at(group * packed.K + k).bias : nullptr;
      product.fused = last && !packed.activation.is_identity() ? &packed.activation : nullptr;
      multiply_tile(product, MR, plan.NV);
    }
  }

  // Copies the staging buffer to y.
  void store_buffer() const {
    const T* from = accumulators;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t p = 0; p < rows; ++p, from += vectors_per_row * L)
        write_tile<S>(from, pitch,
                      {.data = corner + n * conv.y.n + p * conv.y.h,
                       .rows = packed.K,
                       .cols = cols,
                       .row_stride = conv.y.c,
                       .col_stride = conv.y.w});
  }
};

// Computes one correlation, which must be flattened. Tasks: groups x blocks of pixels.
template <class S>
void correlate(const Correlation& conv, const Plan<S>& plan, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  Scratch scratch;
  const PackedCorrelation<S> packed(conv, plan, w, epilogue, scratch);
  const int64_t blocks = plan.blocks.count();
  const double work = double(plan.blocks.pixels()) * packed.K * packed.C * packed.taps;
  parallel_for(conv.groups * blocks, work, [&](int64_t task) {
    Scratch scratch;
    BlockTask<S>(packed, task / blocks, plan.blocks[task % blocks], y, scratch).run(x);
  });
}

}  // namespace spatial
