// grouped: depthwise convolutions and groups of few channels. See docs/kernels.md.
//
// Lanes are the output channels of as many groups as fit into a vector. There is one patch for each input channel of a
// group. Its pixels are single vectors, in which every lane holds that channel of the lane's own group. Taps and input
// channels are then one list of offsets, and all lanes do useful work, however few channels a group has.

namespace grouped {

// How groups share the lanes of a vector.
struct Lanes {
  int64_t c, k;     // channels per group
  int64_t groups;   // per vector
  int64_t in, out;  // channels per vector
  int64_t vectors;  // of all groups

  Lanes(const Conv& conv, int64_t L) : c(conv.C_per_group()), k(conv.K_per_group()) {
    groups = std::clamp<int64_t>(L / std::max<int64_t>(1, std::max(c, k)), 0, conv.groups);
    in = groups * c, out = groups * k;
    vectors = groups > 0 ? (conv.groups - 1) / groups + 1 : 0;
  }
};

// How the outputs are cut into blocks of rows, whose patches fit into a part of L2.
struct Plan {
  static constexpr int64_t patch_bytes_per_vector = 384 << 10;  // the patches of one block and vector
  static constexpr int64_t taps_bytes = 8 << 20;                // the packed taps of all vectors

  int64_t rows, cols, row_blocks, col_blocks;
  bool possible;

  std::string describe() const {
    return "patches of " + std::to_string(rows) + " rows and " + std::to_string(cols) + " columns of outputs";
  }
};

template <class S>
Plan plan(const Conv& conv) {
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  Plan plan{};
  if (share.groups == 0 || share.c == 0) return plan;
  const auto bytes = [&](int64_t rows, int64_t cols) {
    const Patch patch(conv, {0, 1, 0, rows, 0, cols}, L);
    return double(patch.rows.size) * patch.cols.size * L * sizeof(Acc<S>) * share.c;
  };
  // At most as many rows as vectors fit into patch_bytes_per_vector.
  plan.rows = std::clamp<int64_t>(conv.rows.out, 1, Plan::patch_bytes_per_vector / (L * sizeof(Acc<S>)));
  plan.cols = std::max<int64_t>(1, conv.cols.out);
  while (plan.rows > 1 && bytes(plan.rows, plan.cols) > Plan::patch_bytes_per_vector) --plan.rows;
  // Blocks of equal size with an even number of rows, since tiles have two rows.
  const int64_t P = std::max<int64_t>(1, conv.rows.out);
  plan.rows = (P - 1) / ((P - 1) / plan.rows + 1) + 1;
  if (plan.rows > 1) plan.rows = std::min(P, (plan.rows + 1) / 2 * 2);
  while (plan.cols > 1 && bytes(plan.rows, plan.cols) > Plan::patch_bytes_per_vector) plan.cols = (plan.cols + 1) / 2;
  plan.row_blocks = (conv.rows.out + plan.rows - 1) / plan.rows,
  plan.col_blocks = (conv.cols.out + plan.cols - 1) / plan.cols;
  plan.possible = bytes(plan.rows, plan.cols) <= 8.0 * Plan::patch_bytes_per_vector &&
                  (double(conv.rows.kernel) * conv.cols.kernel * share.c + 1) * share.vectors * L * sizeof(Acc<S>) <=
                      Plan::taps_bytes;
  return plan;
}

// The patches of the input channels of one vector: [channel of the group][row][column][lane].
template <class S>
struct GroupedPatches {
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  const Correlation& conv;
  const Block& block;
  const Lanes& share;
  Patch patch;
  T* data;

  GroupedPatches(const Correlation& conv, const Block& block, const Lanes& share, Scratch& scratch)
      : conv(conv), block(block), share(share), patch(conv, block, L) {
    data = scratch.take<T>(patch_pitch() * share.c);
  }

  // Elements from one patch to the next. The extra vector spreads them over the cache sets.
  int64_t patch_pitch() const { return patch.image_pitch() + L; }

  // Fills the patches with the input channels of vector `v`.
  void read(int64_t v, const S* x) {
    const int64_t first = v * share.in, count = std::min(share.in, conv.C - first), size = patch_pitch();
    if (share.c == 1 && share.k == 1) return read_rows(conv, block.n, patch, 0, patch.rows.size, first, count, x, data);
    alignas(64) int32_t index[L][L] = {};
    for (int64_t i = 0; i < share.out; ++i)
      for (int64_t c = 0; c < share.c; ++c) index[c][i] = i / share.k * share.c + c;
    // Copies pixels to all patches: each gets the channels of its lanes by a permutation.
    const auto spread = [&](const auto* from, int64_t step, int64_t pixels, T* to) {
      for (int64_t j = 0; j < pixels; ++j, from += step, to += L) {
        __builtin_prefetch(from + L, 0, 2);  // the channels of the next vector
        const Vector<S> pixel = count == L ? load(from) : load(from, count);
        for (int64_t c = 0; c < share.c; ++c) store(to + c * size, permute(pixel, index[c]));
      }
    };
    if (conv.x.c != 1) {
      // Transposes into the last patch, and spreads from there.
      T* plain = data + (share.c - 1) * size;
      read_rows(conv, block.n, patch, 0, patch.rows.size, first, count, x, plain);
      return spread(const_cast<const T*>(plain), L, patch.rows.size * patch.cols.size, data);
    }
    const int64_t top = patch.rows.begin(conv.rows), bottom = patch.rows.end(conv.rows);
    const int64_t left = patch.cols.begin(conv.cols), right = std::max(left, patch.cols.end(conv.cols));
    const auto zero = [&](T* to, int64_t pixels) {
      for (int64_t c = 0; c < share.c; ++c) std::fill_n(to + c * size, pixels * L, T(0));
    };
    T* to = data;
    for (int64_t i = 0; i < patch.rows.size; ++i, to += patch.row_pitch()) {
      if (i < top || i >= bottom || left == right) {
        zero(to, patch.cols.size);
        continue;
      }
      const int64_t h = patch.rows.first + i * patch.rows.source_step,
                    w = patch.cols.first + left * patch.cols.source_step;
      zero(to, left);
      spread(x + block.n * conv.x.n + first + h * conv.x.h + w * conv.x.w,
             right - left > 1 ? conv.x.w * patch.cols.source_step : 0, right - left, to + left * L);
      zero(to + right * L, patch.cols.size - right);
    }
  }
};

// Packs the taps of vector `v` as [r][c][s][lane]. Lanes beyond the last output channel are zero.
template <class S>
void read_taps(const Correlation& conv, const Lanes& share, int64_t v, const S* w, Acc<S>* to) {
  constexpr int L = lanes<S>;
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, count = std::min(share.out, conv.K - v * share.out);
  std::fill_n(to, taps * share.c * L, Acc<S>(0));
  if (share.c == 1 && share.k == 1 && std::abs(conv.w.w) == 1 && conv.w.h == conv.cols.kernel * conv.w.w) {
    // Depthwise: the taps of a lane are contiguous, in reverse order in a flipped kernel.
    const bool flipped = conv.w.w < 0 && taps > 0;
    const S* from = w + v * share.out * conv.w_group + (flipped ? (taps - 1) * conv.w.w : 0);
    read_tile<S>({from, taps, count, 1, conv.w_group}, to + (flipped ? (taps - 1) * L : 0), flipped ? -L : L);
    return;
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t k = v * share.out + lane;
    const S* from = w + k / share.k * conv.w_group + k % share.k * conv.w.n;
    Acc<S>* tap = to + lane;
    for (int64_t r = 0; r < conv.rows.kernel; ++r)
      for (int64_t c = 0; c < share.c; ++c)
        for (int64_t s = 0; s < conv.cols.kernel; ++s, tap += L)
          *tap = Acc<S>(from[r * conv.w.h + s * conv.w.w + c * conv.w.c]);
  }
}

// The packed taps of a part of the result, and the tile functions that apply them. Tiles read and write elements of
// type X: the accumulator type in patches, or the dtype of the tensors in place.
template <class S, class X>
struct Taps {
  using T = Acc<S>;

  const Correlation& conv;
  S* y;
  T* packed;     // [vector][row of taps][run][tap][lane]
  int64_t size;  // elements of one vector's taps
  const TileFunctions<X>* functions;
  bool single;       // runs have one tap each: the generic tile function
  int64_t tap_rows;  // rows of taps; 0 if there are no taps
  int64_t runs;      // of taps, in a row of taps
  int64_t row_step;  // rows of taps from one row of outputs to the next; 0 if tiles have a single row

  Taps(const Part& part, const S* w, S* y, const Lanes& share, Scratch& scratch)
      : conv(part.conv), y(y + part.y_offset) {
    constexpr int L = lanes<S>;
    const Axis &rows = conv.rows, &cols = conv.cols;
    size = rows.kernel * cols.kernel * share.c * L;
    packed = scratch.take<T>(share.vectors * size);
    parallel_for(share.vectors, double(size),
                 [&](int64_t v) { read_taps(conv, share, v, w + part.w_offset, packed + v * size); });
    const bool joined = cols.kernel <= 1 || cols.dilation == 1;
    functions = tile_functions<X>(joined ? std::max<int64_t>(1, cols.kernel) : 0, cols.kernel <= 1 ? 1 : cols.stride);
    single = !functions;
    if constexpr (std::is_same_v<X, T>)  // in place, there always is one
      if (single) functions = tile_table<X, 1, 0>();
    runs = single ? share.c * cols.kernel : share.c;
    tap_rows = cols.kernel > 0 ? rows.kernel : 0;
    row_step = rows.stride % rows.dilation == 0 ? rows.stride / rows.dilation : 0;
    if (row_step >= tap_rows) row_step = 0;
  }

  // A tile of this part. From one pixel, row and channel of x to the next are `pixel`, `row` and `channel` elements;
  // from one output to the next are `step` pixels. Fills `offset`, which has room for `runs` offsets.
  DepthwiseTile<X> tile(int64_t pixel, int64_t row, int64_t channel, int64_t step, int64_t* offset) const {
    for (int64_t i = 0; i < runs; ++i)
      offset[i] =
          single ? i / conv.cols.kernel * channel + i % conv.cols.kernel * conv.cols.dilation * pixel : i * channel;
    DepthwiseTile<X> tile{};
    tile.pixel = pixel, tile.row = row * conv.rows.dilation, tile.step = step;
    tile.kernel_rows = tap_rows, tile.row_step = row_step;
    tile.offset = offset, tile.runs = runs;
    return tile;
  }

  RowCuts<X> cut(const DepthwiseTile<X>& tile, int64_t cols, Scratch& scratch) const {
    return RowCuts<X>(functions, single ? 1 : std::max<int64_t>(1, conv.cols.kernel), tile, cols, scratch);
  }
};

// A correlation that reads all inputs that the parts of a result read: a single part's own correlation, or else a
// correlation of stride 1 whose window spans the windows of all parts.
inline Correlation hull(const Parts& parts) {
  Correlation all = parts[0].conv;
  if (parts.size() == 1) return all;
  const auto span = [&](Axis Correlation::* which) {
    Axis& axis = all.*which;
    int64_t first = 0, end = 1;  // the input positions that output 0 reads
    bool any = false;
    for (const Part& part : parts) {
      const Axis& own = part.conv.*which;
      axis.out = std::max(axis.out, own.out);
      if (own.kernel == 0) continue;
      const int64_t last = own.position(0, own.kernel - 1) + 1;
      first = any ? std::min(first, -own.pad) : -own.pad, end = any ? std::max(end, last) : last, any = true;
    }
    axis.pad = -first, axis.kernel = end - first, axis.stride = axis.dilation = 1;
  };
  span(&Correlation::rows), span(&Correlation::cols);
  return all;
}

// How all parts of a result are computed from the same patches. Not `possible` if the patches or the packed taps of all
// parts exceed the working memory.
template <class S>
struct PartsPlan {
  Parts parts;
  Correlation hull;
  Plan plan;
  bool possible;

  explicit PartsPlan(const Parts& parts) : parts(parts), hull(grouped::hull(parts)), plan(grouped::plan<S>(hull)) {
    const Lanes share(hull, lanes<S>);
    double taps = 0;
    for (const Part& part : parts) taps += double(part.conv.rows.kernel) * part.conv.cols.kernel;
    possible = plan.possible && (taps * share.c + 1) * share.vectors * lanes<S> * sizeof(Acc<S>) <= Plan::taps_bytes;
  }

  std::string describe() const { return plan.describe(); }
};

// forward and grad_input: computes all parts of a result from the same patches.
template <class S>
void correlate(const PartsPlan<S>& whole, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Correlation& conv = whole.hull;
  const Plan& plan = whole.plan;
  const Lanes share(conv, L);
  const int64_t blocks = conv.N * plan.row_blocks * plan.col_blocks;
  Scratch scratch;
  std::vector<Taps<S, T>> all_taps;
  int64_t taps = 0, runs = 0;
  for (const Part& part : whole.parts) {
    all_taps.emplace_back(part, w, y, share, scratch);
    taps += part.conv.rows.kernel * part.conv.cols.kernel * share.c, runs = std::max(runs, all_taps.back().runs);
  }
  const T* bias = pack_bias<S>(epilogue, conv.K, share.out, L, scratch);  // [vector][lane]
  const bool direct = std::is_same_v<S, T> && conv.y.c == 1;
  const bool stream = direct && share.out == L && conv.K % L == 0 && streams(conv, y, conv.K);

  // Tasks: blocks x a few vectors, whose channels are neighbours in memory.
  int64_t per_task = std::min<int64_t>(share.vectors, 8);
  while (per_task > 1 && blocks * (share.vectors / per_task) < 8 * thread_count()) per_task = (per_task + 1) / 2;
  const int64_t sets = (share.vectors - 1) / per_task + 1;
  parallel_for(blocks * sets, double(plan.rows) * plan.cols * (taps + 4) * per_task * L, [&](int64_t task) {
    const int64_t set = task % sets, b = task / sets;
    const int64_t q0 = b % plan.col_blocks * plan.cols, p0 = b / plan.col_blocks % plan.row_blocks * plan.rows,
                  n = b / plan.col_blocks / plan.row_blocks;
    const Block block{
        n, n + 1, p0, std::min(p0 + plan.rows, conv.rows.out), q0, std::min(q0 + plan.cols, conv.cols.out)};

    Scratch scratch;
    GroupedPatches<S> patches(conv, block, share, scratch);
    const Patch& patch = patches.patch;
    T* buffer = direct ? nullptr : scratch.take<T>(block.pixels() * L);
    int64_t* offset = scratch.take<int64_t>(runs);
    for (int64_t v = set * per_task; v < std::min((set + 1) * per_task, share.vectors); ++v) {
      const int64_t k = v * share.out, count = std::min(share.out, conv.K - k);
      const FusedEpilogue<T> fused{bias ? bias + v * L : nullptr, epilogue.activation, T(epilogue.slope)};
      patches.read(v, x);
      for (const Taps<S, T>& taps : all_taps) {
        const Correlation& part = taps.conv;
        const int64_t rows = std::min(block.p_end, part.rows.out) - block.p,
                      cols = std::min(block.q_end, part.cols.out) - block.q;
        if (rows <= 0 || cols <= 0) continue;
        S* target = taps.y + n * part.y.n + k * part.y.c + block.p * part.y.h + block.q * part.y.w;
        T* out = direct ? reinterpret_cast<T*>(target) : buffer;
        DepthwiseTile<T> tile = taps.tile(L, patch.row_pitch(), patches.patch_pitch(), patch.cols.step, offset);
        tile.left = 0, tile.right = patch.cols.size, tile.top = 0, tile.bottom = patch.rows.size;
        tile.w = taps.packed + v * taps.size;
        tile.y_row = direct ? part.y.h : cols * L, tile.y_pixel = direct ? part.y.w : L;
        tile.count = direct ? count : L, tile.stream = stream;
        tile.fused = direct && !fused.is_identity() ? &fused : nullptr;
        const int64_t shift_h = part.rows.kernel > 0 ? conv.rows.pad - part.rows.pad : 0,
                      shift_w = part.cols.kernel > 0 ? conv.cols.pad - part.cols.pad : 0;
        Scratch scratch;
        const RowCuts<T> cuts = taps.cut(tile, cols, scratch);
        // Iterates down each column of tiles, so that the rows that two tiles share are still in L1.
        for (int64_t i = 0; i < cuts.count; ++i)
          for (int64_t p = 0, made; p < rows; p += made) {
            made = taps.row_step > 0 && p + 1 < rows ? 2 : 1;
            run_cut(cuts.cuts[i], made, tile,
                    patches.data + (p * patch.rows.step + shift_h) * patch.row_pitch() + shift_w * L,
                    out + p * tile.y_row);
          }
        if (direct) continue;
        const bool whole = cols == part.cols.out && part.y.h == cols * part.y.w;
        if (whole) write_tile<S>(out, L, {target, rows * cols, count, part.y.w, part.y.c}, fused);
        for (int64_t p = 0; p < rows && !whole; ++p)
          write_tile<S>(out + p * tile.y_row, L, {target + p * part.y.h, cols, count, part.y.w, part.y.c}, fused);
      }
    }
    if (stream) finish_streams();
  });
}

// Adds the accumulators of all chunks, [chunk][vector][r][c][s][lane], and stores the results to w.
template <class S>
void store_taps(const Conv& conv, const Lanes& share, Acc<S>* accumulators, int64_t chunks, S* w) {
  constexpr int L = lanes<S>;
  const int64_t size = conv.rows.kernel * conv.cols.kernel * share.c * L;
  parallel_for(share.vectors, double(chunks) * size, [&](int64_t v) {
    Acc<S>* total = accumulators + v * size;
    reduce_chunks(total, size, chunks, share.vectors * size);
    const int64_t taps = size / L, count = std::min(share.out, conv.K - v * share.out);
    if (share.c == 1 && conv.w.w == 1 && conv.w.h == conv.cols.kernel)
      return write_tile<S>(total, L, {w + v * share.out * conv.w.n, taps, count, 1, conv.w.n});
    for (int64_t lane = 0; lane < count; ++lane) {
      const Acc<S>* from = total + lane;
      S* to = w + (v * share.out + lane) * conv.w.n;
      for (int64_t r = 0; r < conv.rows.kernel; ++r)
        for (int64_t c = 0; c < share.c; ++c)
          for (int64_t s = 0; s < conv.cols.kernel; ++s, from += L)
            to[r * conv.w.h + s * conv.w.w + c * conv.w.c] = S(*from);
    }
  });
}

// The number of chunks that grad_weight cuts `blocks` blocks into, for `sets` sets of vectors. Each chunk has separate
// accumulators. The number depends on the problem only.
template <class S>
int64_t weight_chunks(const Conv& conv, const Lanes& share, int64_t sets, int64_t blocks) {
  constexpr int64_t tasks = 64, accumulator_bytes = 4 << 20;
  const int64_t size = conv.rows.kernel * conv.cols.kernel * share.c * lanes<S> * share.vectors * sizeof(Acc<S>);
  return std::clamp<int64_t>(std::min((tasks - 1) / sets + 1, accumulator_bytes / size), 1,
                             std::max<int64_t>(1, blocks));
}

// Accumulates the gradient of rows of taps [r, r_end) into accumulators[r][run][tap][lane], a few rows of taps per
// call.
template <class T>
void accumulate_rows(const AccumulateTaps<T>* functions, TapGradients<T> product, int64_t r, int64_t r_end,
                     int64_t taps) {
  const int64_t most = max_tap_rows(taps), sets = (r_end - r - 1) / most + 1, count = r_end - r;
  const T* x = product.x;
  auto* accumulators = product.accumulators;
  for (int64_t set = 0; set < sets; ++set) {
    const int64_t first = r + count * set / sets, rows = r + count * (set + 1) / sets - first;
    product.x = x + first * product.row, product.accumulators = accumulators + first * product.pitch;
    functions[rows - 1](product);
  }
}

constexpr int64_t pixels_at_once = 256;  // output pixels whose rows of x stay in L1 for all taps

// grad_weight by patches. Tasks: sets of vectors x chunks of blocks.
template <class S>
void grad_weight(const Conv& conv, const Plan& plan, const S* x, const S* y, S* w) {
  using T = Acc<S>;
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  const Correlation problem = forward_correlation(conv);
  const int64_t blocks = conv.N * plan.row_blocks * plan.col_blocks, R = conv.rows.kernel, S_taps = conv.cols.kernel;
  const int64_t taps = R * S_taps * share.c, size = taps * L;
  const int64_t per_task = 4, sets = (share.vectors - 1) / per_task + 1;
  const int64_t chunks = weight_chunks<S>(conv, share, sets, blocks);
  const auto* functions = tap_gradient_functions<T>(S_taps == 1 || conv.cols.dilation == 1 ? S_taps : 0,
                                                    S_taps == 1 ? 1 : conv.cols.stride);
  Scratch scratch;
  T* accumulators = scratch.take<T>(chunks * share.vectors * size);
  const double work = double(blocks) / chunks * plan.rows * plan.cols * (taps + 4) * per_task * L;
  parallel_for(sets * chunks, work, [&](int64_t task) {
    const int64_t set = task % sets, chunk = task / sets;
    for (int64_t v = set * per_task; v < std::min((set + 1) * per_task, share.vectors); ++v) {
      T* total = accumulators + (chunk * share.vectors + v) * size;
      std::fill_n(total, size, T(0));
      const int64_t k = v * share.out, count = std::min(share.out, conv.K - k);
      for (int64_t b = blocks * chunk / chunks; b < blocks * (chunk + 1) / chunks; ++b) {
        const int64_t q0 = b % plan.col_blocks * plan.cols, p0 = b / plan.col_blocks % plan.row_blocks * plan.rows,
                      n = b / plan.col_blocks / plan.row_blocks;
        const Block block{
            n, n + 1, p0, std::min(p0 + plan.rows, conv.rows.out), q0, std::min(q0 + plan.cols, conv.cols.out)};
        const int64_t rows = block.p_end - block.p, cols = block.q_end - block.q;
        Scratch scratch;
        GroupedPatches<S> patches(problem, block, share, scratch);
        const Patch& patch = patches.patch;
        patches.read(v, x);
        const S* from = y + n * conv.y.n + k * conv.y.c + block.p * conv.y.h + block.q * conv.y.w;
        const bool in_place = std::is_same_v<S, T> && conv.y.c == 1 && count == L;
        T* copy = in_place ? nullptr : scratch.take<T>(rows * cols * L);
        for (int64_t p = 0; p < rows && !in_place; ++p)
          read_tile<S>({from + p * conv.y.h, cols, count, conv.y.w, conv.y.c}, copy + p * cols * L, L);
        const T* gradient = in_place ? reinterpret_cast<const T*>(from) : copy;
        const int64_t y_row = in_place ? conv.y.h : cols * L, y_pixel = in_place ? conv.y.w : L;
        const int64_t x_row = patch.rows.step * patch.row_pitch(), tap_row = conv.rows.dilation * patch.row_pitch();
        const int64_t together = std::clamp<int64_t>(pixels_at_once / cols, 1, rows);
        int64_t* offset = scratch.take<int64_t>(taps);
        for (int64_t i = 0; i < taps; ++i)
          offset[i] = i / S_taps % share.c * patches.patch_pitch() + i / S_taps / share.c * tap_row +
                      i % S_taps * conv.cols.dilation * L;
        for (int64_t p = 0; p < rows; p += together) {
          const int64_t some = std::min(together, rows - p);
          if (functions) {
            TapGradients<T> product{};
            product.pixel = L, product.row = tap_row, product.x_row = x_row;
            product.left = 0, product.right = patch.cols.size;
            product.y = gradient + p * y_row, product.y_pixel = y_pixel, product.y_row = y_row;
            product.rows = some, product.cols = cols, product.pitch = share.c * S_taps * L;
            for (int64_t c = 0; c < share.c; ++c) {
              product.x = patches.data + p * x_row + c * patches.patch_pitch(),
              product.accumulators = total + c * S_taps * L;
              accumulate_rows(functions, product, 0, R, S_taps);
            }
          } else {
            const int64_t parts = (taps - 1) / max_taps + 1;
            for (int64_t part = 0; part < parts; ++part) {
              const int64_t t = taps * part / parts, many = taps * (part + 1) / parts - t;
              any_tap_gradient_functions<T>[many - least_taps<T>](patches.data + p* x_row, x_row, patch.cols.step* L,
                                                                  gradient + p* y_row, y_row, y_pixel, some, cols,
                                                                  offset + t, total + t* L);
            }
          }
        }
      }
    }
  });
  store_taps(conv, share, accumulators, chunks, w);
}

}  // namespace grouped
