// grouped: how groups share the lanes of vectors, how outputs are cut into blocks, and the patches of a block.

namespace grouped {

// How groups share the lanes of a vector.
struct Lanes {
  int64_t c, k;     // channels per group
  int64_t groups;   // per vector
  int64_t in, out;  // channels per vector
  int64_t vectors;  // of all groups
  int64_t
      last_full;  // the first channel of the last vector if it overlaps the one before, so that all lanes are filled

  // With `overlap`, the convolution is depthwise and fills at least one vector.
  Lanes(const Conv& conv, int64_t L, bool overlap = false) : c(conv.C_per_group()), k(conv.K_per_group()) {
    groups = std::clamp<int64_t>(L / std::max<int64_t>(1, std::max(c, k)), 0, conv.groups);
    in = groups * c;
    out = groups * k;
    vectors = groups > 0 ? ceil_div(conv.groups, groups) : 0;
    last_full = overlap ? conv.groups - L : std::numeric_limits<int64_t>::max();
  }

  // The first output channel of vector `v`.
  int64_t first_out(int64_t v) const { return std::min(v * out, last_full); }
};

// How the outputs are cut into blocks of rows, whose patches fit into a part of L2.
struct Plan {
  static constexpr int64_t patch_bytes = 384 << 10;            // of one block and vector: three eighths of L2 (1 MiB)
  static constexpr int64_t max_patch_bytes = 8 * patch_bytes;  // if a block cannot be any smaller
  static constexpr int64_t taps_bytes = 8 << 20;               // the packed taps of all vectors: a quarter of Scratch
  // With a staging buffer, which is no larger than the patches.
  static_assert(taps_bytes + 2 * max_patch_bytes <= int64_t(scratch_per_thread));

  int64_t rows, cols;  // of a block
  int64_t row_blocks, col_blocks;
  bool possible;

  int64_t blocks(const Conv& conv) const { return conv.N * row_blocks * col_blocks; }

  Block block(const Conv& conv, int64_t i) const {
    const int64_t n = i / col_blocks / row_blocks;
    const int64_t p = i / col_blocks % row_blocks * rows;
    const int64_t q = i % col_blocks * cols;
    return {.n = n,
            .n_end = n + 1,
            .p = p,
            .p_end = std::min(p + rows, conv.rows.out),
            .q = q,
            .q_end = std::min(q + cols, conv.cols.out)};
  }

  std::string describe() const {
    return "patches of " + counted(rows, "row") + " and " + counted(cols, "column") + " of outputs";
  }
};

// With `one_patch` for all input channels of a group, or else one for each.
template <class S>
Plan plan(const Conv& conv, bool one_patch = false) {
  constexpr int L = lanes<S>;
  const Lanes share(conv, L);
  Plan plan{};
  if (share.groups == 0 || share.c == 0) return plan;
  const auto bytes = [&](int64_t rows, int64_t cols) {
    const Patch patch(conv, {0, 1, 0, rows, 0, cols}, L);
    return double(patch.rows.size) * patch.cols.size * L * sizeof(Acc<S>) * (one_patch ? 1 : share.c);
  };
  // At most as many rows as vectors fit into patch_bytes.
  plan.rows = std::clamp<int64_t>(conv.rows.out, 1, Plan::patch_bytes / (L * sizeof(Acc<S>)));
  plan.cols = std::max<int64_t>(1, conv.cols.out);
  while (plan.rows > 1 && bytes(plan.rows, plan.cols) > Plan::patch_bytes) --plan.rows;
  // Blocks of equal size with an even number of rows, since tiles have two rows.
  const int64_t P = std::max<int64_t>(1, conv.rows.out);
  plan.rows = ceil_div(P, ceil_div(P, plan.rows));
  if (plan.rows > 1) plan.rows = std::min(P, round_up(plan.rows, 2));
  while (plan.cols > 1 && bytes(plan.rows, plan.cols) > Plan::patch_bytes) plan.cols = ceil_div(plan.cols, 2);
  plan.row_blocks = ceil_div(conv.rows.out, plan.rows);
  plan.col_blocks = ceil_div(conv.cols.out, plan.cols);
  plan.possible = bytes(plan.rows, plan.cols) <= Plan::max_patch_bytes &&
                  (double(conv.rows.kernel) * conv.cols.kernel * share.c + 1) * share.vectors * L * sizeof(Acc<S>) <=
                      Plan::taps_bytes;
  return plan;
}

// For each lane of outputs, the lane of a pixel that holds input channel c of its group.
inline int32_t input_lane(const Lanes& share, int64_t lane, int64_t c) {
  return int32_t(lane < share.out ? lane / share.k * share.c + c : 0);
}

// The patches of the input channels of one vector: [channel of the group][row][column][lane]; or one patch, whose lanes
// are all of them.
template <class S>
struct GroupedPatches {
  using T = Acc<S>;
  static constexpr int L = lanes<S>;

  const Correlation& conv;
  const Block& block;
  const Lanes& share;
  const bool one_patch;
  Patch patch;
  T* data;

  GroupedPatches(const Correlation& conv, const Block& block, const Lanes& share, Scratch& scratch,
                 bool one_patch = false)
      : conv(conv), block(block), share(share), one_patch(one_patch), patch(conv, block, L) {
    data = scratch.take<T>(patch_pitch() * (one_patch ? 1 : share.c));
  }

  // Elements from one patch to the next. The extra vector spreads them over the cache sets.
  int64_t patch_pitch() const { return patch.image_pitch() + L; }

  // Fills the patches with the input channels of vector `v`.
  void read(int64_t v, const S* x) {
    const int64_t first = v * share.in, count = std::min(share.in, conv.C - first), rows = patch.rows.size;
    if (one_patch || (share.c == 1 && share.k == 1))
      return read_rows(conv, block.n, patch, 0, rows, first, count, x, data);
    alignas(64) int32_t index[L][L];  // [channel of the group][lane]
    for (int64_t c = 0; c < share.c; ++c)
      for (int lane = 0; lane < L; ++lane) index[c][lane] = input_lane(share, lane, c);
    if (conv.x.c == 1) {
      read_rows(
          conv, block.n, patch, 0, rows, first, count, x, data,
          [&](const StridedMatrix<const S>& pixels, T* to, int64_t, int64_t) { spread(pixels, index, to); },
          [&](T* to, int64_t pixels) {
            for (int64_t c = 0; c < share.c; ++c) std::fill_n(to + c * patch_pitch(), pixels * L, T(0));
          });
      return;
    }
    // Transposes into the last patch, and spreads from there.
    T* last = data + (share.c - 1) * patch_pitch();
    read_rows(conv, block.n, patch, 0, rows, first, count, x, last);
    const StridedMatrix<const T> pixels{
        .data = last, .rows = rows * patch.cols.size, .cols = count, .row_stride = L, .col_stride = 1};
    spread(pixels, index, data);
  }

  // Copies pixels to all patches. Each patch gets the channels of its lanes by a permutation.
  template <class E>
  void spread(const StridedMatrix<const E>& pixels, const int32_t (&index)[L][L], T* to) const {
    const int64_t channels = share.c, size = patch_pitch(), count = pixels.cols, step = pixels.row_stride;
    const E* from = pixels.data;
    for (int64_t j = 0, end = pixels.rows; j < end; ++j, from += step, to += L) {
      __builtin_prefetch(from + L, 0, 2);  // the channels of the next vector
      const Vector<S> pixel = count == L ? load(from) : load(from, count);
      for (int64_t c = 0; c < channels; ++c) store(to + c * size, permute(pixel, index[c]));
    }
  }
};

}  // namespace grouped
