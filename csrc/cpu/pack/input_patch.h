// Input patches, for any geometry: the part of x that a block of outputs reads, copied with channels
// innermost, [row][column][channel], and with zeros for the padding. The layout, dtype, padding and strides of tensors
// end here; the inner loops see patches only.

// A block of outputs: images [n, n_end), rows [p, p_end) and columns [q, q_end).
struct Block {
  int64_t n, n_end, p, p_end, q, q_end;

  int64_t pixels() const { return (n_end - n) * (p_end - p) * (q_end - q); }
};

// One axis of a patch, for outputs [begin, end). With a kernel of one tap, elements that no output reads are left out.
// With a single output both steps are 1, because the stride may be too large to compute with.
struct PatchAxis {
  int64_t first;        // input position of element 0
  int64_t source_step;  // input positions from one element to the next
  int64_t step;         // elements of the patch from one output to the next
  int64_t size;

  PatchAxis(const Axis& axis, int64_t begin, int64_t end)
      : first(axis.position(begin, 0)),
        source_step(axis.kernel == 1 && end - begin > 1 ? axis.stride : 1),
        step(axis.kernel == 1 || end - begin == 1 ? 1 : axis.stride),
        size((end - begin - 1) * step + (axis.kernel > 1 ? (axis.kernel - 1) * axis.dilation : 0) + 1) {}

  // Elements [begin(axis), end(axis)) are in the input; the others are padding.
  int64_t begin(const Axis& axis) const {
    return std::clamp<int64_t>(first >= 0 ? 0 : ceil_div(-first, source_step), 0, size);
  }
  int64_t end(const Axis& axis) const {
    return first >= axis.in ? 0 : std::clamp<int64_t>(ceil_div(axis.in - first, source_step), 0, size);
  }
};

// The shape of the patch of a block, for each of its images: [row][column][channel, `pitch` in all].
struct Patch {
  PatchAxis rows, cols;
  int64_t pitch;  // elements from one pixel to the next: the number of channels, or a little more

  Patch(const Conv& conv, const Block& block, int64_t pitch)
      : rows(conv.rows, block.p, block.p_end), cols(conv.cols, block.q, block.q_end), pitch(pitch) {}

  int64_t row_pitch() const { return cols.size * pitch; }
  int64_t image_pitch() const { return rows.size * row_pitch(); }
};

// Fills rows [i, i_end) of the patch of image n, at `to`, with channels [c, c + count). `read` copies the pixels of a
// row that are in the input; it takes the arguments of read_tile. zero(to, pixels) fills the padding.
template <class S, class E, class Read, class Zero>
void read_rows(const Correlation& conv, int64_t n, const Patch& patch, int64_t i, int64_t i_end, int64_t c,
               int64_t count, const S* x, E* to, const Read& read, const Zero& zero) {
  const int64_t top = patch.rows.begin(conv.rows), bottom = patch.rows.end(conv.rows);
  const int64_t left = patch.cols.begin(conv.cols), right = std::max(left, patch.cols.end(conv.cols));
  to += i * patch.row_pitch();
  for (; i < i_end; ++i, to += patch.row_pitch()) {
    if (i < top || i >= bottom || left == right) {
      zero(to, patch.cols.size);
      continue;
    }
    const int64_t h = patch.rows.first + i * patch.rows.source_step;
    const int64_t w = patch.cols.first + left * patch.cols.source_step;
    // A single pixel has no step to the next one: the product may overflow 64 bits.
    const int64_t step = right - left > 1 ? conv.x.w * patch.cols.source_step : conv.x.w;
    const StridedMatrix<const S> pixels{.data = x + n * conv.x.n + c * conv.x.c + h * conv.x.h + w * conv.x.w,
                                        .rows = right - left,
                                        .cols = count,
                                        .row_stride = step,
                                        .col_stride = conv.x.c};
    zero(to, left);
    read(pixels, to + left * patch.pitch, patch.pitch, i + 1 < bottom ? conv.x.h * patch.rows.source_step : 0);
    zero(to + right * patch.pitch, patch.cols.size - right);
  }
}

template <class S, class E, class Read>
void read_rows(const Correlation& conv, int64_t n, const Patch& patch, int64_t i, int64_t i_end, int64_t c,
               int64_t count, const S* x, E* to, const Read& read) {
  read_rows(conv, n, patch, i, i_end, c, count, x, to, read,
            [&](E* at, int64_t pixels) { std::fill_n(at, pixels * patch.pitch, E{}); });
}

template <class S, class E>
void read_rows(const Correlation& conv, int64_t n, const Patch& patch, int64_t i, int64_t i_end, int64_t c,
               int64_t count, const S* x, E* to) {
  read_rows(conv, n, patch, i, i_end, c, count, x, to,
            [](const auto&... tile) __attribute__((always_inline)) { read_tile(tile...); });
}

// Fills one patch per image of the block, [image][row][column][channel], with channels [c, c + count).
template <class S, class E>
void read_patch(const Correlation& conv, const Block& block, const Patch& patch, int64_t c, int64_t count, const S* x,
                E* to) {
  for (int64_t n = block.n; n < block.n_end; ++n, to += patch.image_pitch())
    read_rows(conv, n, patch, 0, patch.rows.size, c, count, x, to);
}

// Cuts all outputs into blocks of about `pixels` pixels whose patches of `channels` channels take at most `most` bytes
// where possible. A block is several whole images, some rows of one image, or a part of one row.
template <class S>
struct Blocks {
  int64_t N, P, Q, images = 1, rows = 1, cols;
  double patch_bytes;  // of the largest block

  Blocks() = default;
  Blocks(const Conv& conv, int64_t pixels, int64_t channels, double most)
      : N(conv.N), P(conv.rows.out), Q(conv.cols.out), cols(Q) {
    const auto bytes = [&](int64_t rows, int64_t cols) {
      const Patch patch(conv, {0, 1, 0, rows, 0, cols}, channels);
      return double(patch.rows.size) * patch.cols.size * channels * sizeof(Acc<S>);
    };
    if (bytes(1, Q) > most || Q > 2 * pixels) {
      cols = std::min(Q, pixels);
      while (cols > 1 && bytes(1, cols) > most) cols = ceil_div(cols, 2);
    } else {
      rows = std::clamp<int64_t>(pixels / Q, 1, P);
      while (rows > 1 && bytes(rows, Q) > most) --rows;
      rows = ceil_div(P, ceil_div(P, rows));
      if (rows == P) {
        images = std::clamp<int64_t>(pixels / (P * Q), 1, std::max<int64_t>(1, N));
        while (images > 1 && images * bytes(P, Q) > most) --images;
      }
    }
    patch_bytes = images * bytes(rows, cols);
  }

  int64_t pixels() const { return images * rows * cols; }
  int64_t count() const { return ceil_div(N, images) * ceil_div(P, rows) * ceil_div(Q, cols); }

  Block operator[](int64_t i) const {
    const int64_t row_blocks = ceil_div(P, rows), col_blocks = ceil_div(Q, cols);
    const int64_t n = i / col_blocks / row_blocks * images;
    const int64_t p = i / col_blocks % row_blocks * rows;
    const int64_t q = i % col_blocks * cols;
    return {.n = n,
            .n_end = std::min(n + images, N),
            .p = p,
            .p_end = std::min(p + rows, P),
            .q = q,
            .q_end = std::min(q + cols, Q)};
  }
};

// A block of pixels of a tensor, starting at `corner`. Contiguous rows are merged into one long row.
template <class S>
struct Pixels {
  const S* corner;
  Strides strides;
  int64_t images, rows, cols;

  Pixels(const S* corner, const Strides& strides, const Block& block)
      : corner(corner),
        strides(strides),
        images(block.n_end - block.n),
        rows(block.p_end - block.p),
        cols(block.q_end - block.q) {
    if (strides.h == cols * strides.w) {
      cols *= rows;
      rows = 1;
    }
  }
};

// Prefetches channels [first, first + count) of a block of pixels, for writing if `write`, with an equal share of the
// pixels in each of `calls` calls. Does nothing if the channels are not contiguous.
template <class S, bool write = false>
class PrefetchPixels {
 public:
  PrefetchPixels(const Pixels<S>& pixels, int64_t first, int64_t count, int64_t calls)
      : pixels_(pixels), row_(pixels.corner + first), left_(0), bytes_(count * sizeof(S)) {
    if (count > 0 && pixels.strides.c == 1) left_ = pixels.images * pixels.rows * pixels.cols;
    each_ = ceil_div(left_, calls);
  }

  INLINE void operator()() {
    const int64_t now = std::min(left_, each_);
    left_ -= now;
    for (int64_t i = 0; i < now; ++i) {
      const char* pixel = reinterpret_cast<const char*>(row_ + q_ * pixels_.strides.w);
      for (int64_t byte = 0; byte < bytes_; byte += 64) __builtin_prefetch(pixel + byte, write);
      if (++q_ < pixels_.cols) continue;
      q_ = 0;
      row_ += pixels_.strides.h;
      if (++p_ < pixels_.rows) continue;
      p_ = 0;
      row_ += pixels_.strides.n - pixels_.rows * pixels_.strides.h;
    }
  }

 private:
  const Pixels<S> pixels_;
  const S* row_;
  int64_t left_, each_, bytes_, p_ = 0, q_ = 0;
};
