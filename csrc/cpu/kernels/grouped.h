// grouped: depthwise convolutions and groups of few channels. See docs/kernels.md.
//
// Lanes are the output channels of as many groups as fit into a vector. For each input channel of a group, a pixel is a
// vector in which every lane holds that channel of the lane's own group: a permutation of the pixel's channels. For the
// kernels in permuted_shapes, one patch holds the pixels as they are, and each load is followed by a permutation in a
// register. For all others there is one patch for each input channel of a group, whose pixels are permuted already;
// taps and channels are then one list of offsets. All lanes do useful work, however few channels a group has.

namespace grouped {

// Packs the taps of vector `v` as [r][c][s][lane]. Lanes beyond the last output channel are zero.
template <class S>
void pack_taps(const Correlation& conv, const Lanes& share, int64_t v, const S* w, Acc<S>* to) {
  constexpr int L = lanes<S>;
  const int64_t taps = conv.rows.kernel * conv.cols.kernel, first = share.first_out(v);
  const int64_t count = std::min(share.out, conv.K - first);
  std::fill_n(to, taps * share.c * L, Acc<S>(0));
  if (share.c == 1 && share.k == 1 && std::abs(conv.w.w) == 1 && conv.w.h == conv.cols.kernel * conv.w.w) {
    // Depthwise: the taps of a lane are contiguous, in reverse order in a flipped kernel.
    const bool flipped = conv.w.w < 0 && taps > 0;
    const S* from = w + first * conv.w_group + (flipped ? (taps - 1) * conv.w.w : 0);
    const StridedMatrix<const S> lanes_of_taps{
        .data = from, .rows = taps, .cols = count, .row_stride = 1, .col_stride = conv.w_group};
    read_tile(lanes_of_taps, to + (flipped ? (taps - 1) * L : 0), flipped ? -L : L);
    return;
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t k = first + lane;
    const S* from = w + k / share.k * conv.w_group + k % share.k * conv.w.n;
    Acc<S>* tap = to + lane;
    for (int64_t r = 0; r < conv.rows.kernel; ++r)
      for (int64_t c = 0; c < share.c; ++c)
        for (int64_t s = 0; s < conv.cols.kernel; ++s, tap += L)
          *tap = Acc<S>(from[r * conv.w.h + s * conv.w.w + c * conv.w.c]);
  }
}

// The taps of a run and the step from one output to the next. No taps if they are not neighbours.
inline TapShape tap_shape(const Correlation& conv) {
  const Axis& cols = conv.cols;
  const bool joined = cols.kernel <= 1 || cols.dilation == 1;
  return {joined ? std::max<int64_t>(1, cols.kernel) : 0, cols.kernel <= 1 ? 1 : cols.stride};
}

// Whether permuted tiles compute all parts of a result.
template <class T>
bool can_permute(const Parts& parts) {
  if (parts[0].conv.C_per_group() == 1) return false;
  return std::ranges::all_of(parts, [](const Part& part) {
    const TapShape shape = tap_shape(part.conv);
    return permuted_tile_functions<T>(shape.taps, shape.step) != nullptr;
  });
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

  Taps(const Part& part, const S* w, S* y, const Lanes& share, bool permuted, Scratch& scratch)
      : conv(part.conv), y(y + part.y_offset) {
    constexpr int L = lanes<S>;
    const Axis &rows = conv.rows, &cols = conv.cols;
    size = rows.kernel * cols.kernel * share.c * L;
    packed = scratch.take<T>(share.vectors * size);
    parallel_for(share.vectors, double(size),
                 [&](int64_t v) { pack_taps(conv, share, v, w + part.w_offset, packed + v * size); });
    const TapShape shape = tap_shape(conv);
    functions =
        permuted ? permuted_tile_functions<X>(shape.taps, shape.step) : tile_functions<X>(shape.taps, shape.step);
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
    tile.pixel = pixel;
    tile.row = row * conv.rows.dilation;
    tile.step = step;
    tile.kernel_rows = tap_rows;
    tile.row_step = row_step;
    tile.offset = offset;
    tile.runs = runs;
    return tile;
  }

  RowCuts<X> cut(const DepthwiseTile<X>& tile, int64_t cols, Scratch& scratch) const {
    return RowCuts<X>(functions, single ? 1 : std::max<int64_t>(1, conv.cols.kernel), tile, cols, scratch);
  }
};

// The packed taps of all parts of a result, and the packed bias.
template <class S, class X>
struct PackedParts {
  using T = Acc<S>;

  const Lanes share;
  const PackedEpilogue<S> epilogue;  // [vector][lane]
  std::vector<Taps<S, X>> parts;
  int64_t taps = 0;      // of all parts, for one output channel
  int64_t max_runs = 0;  // of a part

  PackedParts(const Parts& all, bool overlap, bool permuted, const S* w, S* y, const Epilogue& epilogue,
              Scratch& scratch)
      : share(all[0].conv, lanes<S>, overlap), epilogue(epilogue, all[0].conv.K, share.out, lanes<S>, scratch) {
    for (const Part& part : all) {
      parts.emplace_back(part, w, y, share, permuted, scratch);
      taps += part.conv.rows.kernel * part.conv.cols.kernel * share.c;
      max_runs = std::max(max_runs, parts.back().runs);
    }
  }

  // The epilogue of vector `v`.
  INLINE FusedEpilogue<T> fused(int64_t v) const {
    return epilogue.at(share.out == lanes<S> ? share.first_out(v) : v * lanes<S>);
  }
};

// An axis of stride 1 whose window spans the windows of all parts.
inline Axis hull_axis(const Parts& parts, Axis Conv::* which) {
  Axis axis = parts[0].conv.*which;
  // The input positions that output 0 reads.
  int64_t first = std::numeric_limits<int64_t>::max(), end = std::numeric_limits<int64_t>::min();
  for (const Part& part : parts) {
    const Axis& own = part.conv.*which;
    axis.out = std::max(axis.out, own.out);
    if (own.kernel == 0) continue;
    first = std::min(first, own.position(0, 0));
    end = std::max(end, own.position(0, own.kernel - 1) + 1);
  }
  const bool any = first < end;
  axis.pad = any ? -first : 0;
  axis.kernel = any ? end - first : 1;
  axis.stride = 1;
  axis.dilation = 1;
  return axis;
}

// A correlation that reads all inputs that the parts of a result read: a single part's own correlation, or else a
// correlation of stride 1 whose window spans the windows of all parts.
inline Correlation hull(const Parts& parts) {
  Correlation all = parts[0].conv;
  if (parts.size() == 1) return all;
  all.rows = hull_axis(parts, &Conv::rows);
  all.cols = hull_axis(parts, &Conv::cols);
  return all;
}

// How all parts of a result are computed from the same patches. Not `possible` if the patches or the packed taps of all
// parts exceed the working memory.
template <class S>
struct PartsPlan {
  Parts parts;
  Correlation hull;
  bool permuted;  // tiles permute pixels, which are in one patch
  Plan plan;
  bool possible;

  explicit PartsPlan(const Parts& parts)
      : parts(parts),
        hull(grouped::hull(parts)),
        permuted(can_permute<Acc<S>>(parts)),
        plan(grouped::plan<S>(hull, permuted)) {
    const Lanes share(hull, lanes<S>);
    double taps = 0;
    for (const Part& part : parts) taps += double(part.conv.rows.kernel) * part.conv.cols.kernel;
    possible = plan.possible && (taps * share.c + 1) * share.vectors * lanes<S> * sizeof(Acc<S>) <= Plan::taps_bytes;
  }

  std::string describe() const { return plan.describe(); }
};

// The estimated cost of an output besides its taps, in multiplications: for the work of a task (parallel_for).
constexpr int64_t output_cost = 4;

// forward and grad_input. Tasks: blocks of outputs x sets of vectors. A task computes all parts of its block from the
// same patches.
template <class S>
class Correlator {
 public:
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  Correlator(const PartsPlan<S>& whole, const S* x, const S* w, S* y, const Epilogue& epilogue, Scratch& scratch)
      : conv_(whole.hull),
        plan_(whole.plan),
        x_(x),
        packed_(whole.parts, false, whole.permuted, w, y, epilogue, scratch) {
    if (whole.permuted) lanes_ = input_lanes(scratch);
    direct_ = std::is_same_v<S, T> && conv_.y.c == 1;
    stream_ = direct_ && share_.out == L && conv_.K % L == 0 && streams(conv_, y, conv_.K);
    const int64_t blocks = plan_.blocks(conv_);
    per_task_ = std::min<int64_t>(share_.vectors, max_vectors_per_task);
    while (per_task_ > 1 && blocks * (share_.vectors / per_task_) < tasks_per_thread * thread_count())
      per_task_ = ceil_div(per_task_, 2);
    sets_ = ceil_div(share_.vectors, per_task_);
  }

  int64_t tasks() const { return plan_.blocks(conv_) * sets_; }

  double work_per_task() const {
    return double(plan_.rows) * plan_.cols * (packed_.taps + output_cost) * per_task_ * L;
  }

  void run_task(int64_t task) const {
    const int64_t set = task % sets_;
    const Block block = plan_.block(conv_, task / sets_);
    Scratch scratch;
    GroupedPatches<S> patches(conv_, block, share_, scratch, lanes_ != nullptr);
    T* buffer = direct_ ? nullptr : scratch.take<T>(block.pixels() * L);
    int64_t* offset = scratch.take<int64_t>(packed_.max_runs);
    const int64_t end = std::min((set + 1) * per_task_, share_.vectors);
    for (int64_t v = set * per_task_; v < end; ++v) {
      patches.read(v, x_);
      for (const Taps<S, T>& taps : packed_.parts) run_part(taps, v, patches, buffer, offset);
    }
    if (stream_) finish_streams();
  }

 private:
  static constexpr int64_t max_vectors_per_task = 8;  // of a set, whose channels are neighbours in memory
  static constexpr int64_t tasks_per_thread = 8;      // with fewer tasks, sets become smaller

  // [channel of the group][lane] the lane of a pixel that each lane reads.
  const int32_t* input_lanes(Scratch& scratch) const {
    int32_t* all = scratch.take<int32_t>(share_.c * L);
    for (int64_t i = 0; i < share_.c * L; ++i) all[i] = input_lane(share_, i % L, i / L);
    return all;
  }

  // Computes vector `v` of the outputs of one part that are in the block of the patches. `buffer` is the staging
  // buffer; `offset` has room for the offsets of all runs.
  void run_part(const Taps<S, T>& taps, int64_t v, const GroupedPatches<S>& patches, T* buffer, int64_t* offset) const {
    const Correlation& part = taps.conv;
    const Block& block = patches.block;
    const Patch& patch = patches.patch;
    const int64_t rows = std::min(block.p_end, part.rows.out) - block.p;
    const int64_t cols = std::min(block.q_end, part.cols.out) - block.q;
    if (rows <= 0 || cols <= 0) return;
    const int64_t k = v * share_.out, count = std::min(share_.out, conv_.K - k);
    S* y = taps.y + block.n * part.y.n + k * part.y.c + block.p * part.y.h + block.q * part.y.w;
    const FusedEpilogue<T> fused = packed_.fused(v);

    const int64_t channel = patches.one_patch ? 0 : patches.patch_pitch();
    DepthwiseTile<T> tile = taps.tile(L, patch.row_pitch(), channel, patch.cols.step, offset);
    tile.lanes = lanes_;
    tile.left = 0;
    tile.right = patch.cols.size;
    tile.top = 0;
    tile.bottom = patch.rows.size;
    tile.w = taps.packed + v * taps.size;
    tile.y_row = direct_ ? part.y.h : cols * L;
    tile.y_pixel = direct_ ? part.y.w : L;
    tile.count = direct_ ? count : L;
    tile.stream = stream_;
    tile.fused = direct_ && !fused.is_identity() ? &fused : nullptr;
    run_tiles(taps, tile, patches, rows, cols, direct_ ? reinterpret_cast<T*>(y) : buffer);
    if (!direct_) store_buffer(part, buffer, rows, cols, count, y, fused);
  }

  // Computes rows x cols outputs of a part. `tile` describes a tile at the first of them, which is stored to `out`.
  void run_tiles(const Taps<S, T>& taps, DepthwiseTile<T>& tile, const GroupedPatches<S>& patches, int64_t rows,
                 int64_t cols, T* out) const {
    const Correlation& part = taps.conv;
    const Patch& patch = patches.patch;
    // The window of the part within the window of the hull.
    const int64_t shift_h = part.rows.kernel > 0 ? conv_.rows.pad - part.rows.pad : 0;
    const int64_t shift_w = part.cols.kernel > 0 ? conv_.cols.pad - part.cols.pad : 0;
    Scratch scratch;
    const RowCuts<T> cuts = taps.cut(tile, cols, scratch);
    // Iterates down each column of tiles, so that the rows that two tiles share are still in L1.
    for (int64_t i = 0; i < cuts.count; ++i)
      for (int64_t p = 0, made; p < rows; p += made) {
        made = taps.row_step > 0 && p + 1 < rows ? 2 : 1;
        run_cut(cuts.cuts[i], made, tile,
                patches.data + (p * patch.rows.step + shift_h) * patch.row_pitch() + shift_w * L, out + p * tile.y_row);
      }
  }

  // Stores the staging buffer to the outputs that begin at y.
  static void store_buffer(const Correlation& part, const T* buffer, int64_t rows, int64_t cols, int64_t count, S* y,
                           const FusedEpilogue<T>& fused) {
    const bool contiguous = cols == part.cols.out && part.y.h == cols * part.y.w;
    StridedMatrix<S> to{.data = y,
                        .rows = contiguous ? rows * cols : cols,
                        .cols = count,
                        .row_stride = part.y.w,
                        .col_stride = part.y.c};
    if (contiguous) return write_tile(buffer, L, to, fused);
    for (int64_t p = 0; p < rows; ++p, buffer += cols * L, to.data += part.y.h) write_tile(buffer, L, to, fused);
  }

  const Correlation& conv_;  // the hull of all parts
  const Plan& plan_;
  const S* x_;
  const PackedParts<S, T> packed_;
  const Lanes& share_ = packed_.share;
  const int32_t* lanes_ = nullptr;  // [channel of the group][lane] if tiles permute pixels
  bool direct_;                     // tiles are stored straight to y; otherwise to a staging buffer
  bool stream_;                     // with non-temporal stores
  int64_t per_task_, sets_;
};

// forward and grad_input: computes all parts of a result from the same patches.
template <class S>
void correlate(const PartsPlan<S>& whole, const S* x, const S* w, S* y, const Epilogue& epilogue) {
  Scratch scratch;
  const Correlator<S> correlator(whole, x, w, y, epilogue, scratch);
  parallel_for(correlator.tasks(), correlator.work_per_task(), [&](int64_t task) { correlator.run_task(task); });
}

}  // namespace grouped
