// gemm: the register tiles of a block of pixels. Which pixels are in a tile, where they are read and stored, and how a
// tile is multiplied with a panel of weights. See gemm.h.

namespace gemm {

// A reduction cut into pieces of about max_reduction steps (up to 3 more): each is some whole runs, or a part of one.
struct Pieces {
  struct Piece {
    int64_t first, runs, length;  // the runs at offsets [first, first + runs), of `length` steps each
    int64_t steps_before;         // steps of the reduction before this piece
  };
  int64_t longest;
  int64_t* offset;
  Piece* pieces;
  int64_t count = 0;

  // Reserves memory for `runs` runs of at most `length` steps.
  Pieces(int64_t longest, int64_t runs, int64_t length, Scratch& scratch)
      : longest(longest),
        offset(scratch.take<int64_t>(runs * of_run(length))),
        pieces(scratch.take<Piece>(runs * of_run(length))) {}

  // The number of pieces that a run of `length` steps is cut into.
  int64_t of_run(int64_t length) const { return (length - 1) / longest + 1; }

  // Cuts `runs` runs of `length` steps; run_offset(i) is the offset of run i. Cuts within a run are at multiples of 4.
  template <class RunOffset>
  void set(int64_t runs, int64_t length, const RunOffset& run_offset) {
    count = 0;
    if (const int64_t parts = of_run(length); parts > 1) {
      const auto begin = [&](int64_t part) { return part < parts ? length * part / parts / 4 * 4 : length; };
      for (int64_t i = 0; i < runs; ++i)
        for (int64_t part = 0; part < parts; ++part, ++count) {
          offset[count] = run_offset(i) + begin(part);
          pieces[count] = {count, 1, begin(part + 1) - begin(part), i * length + begin(part)};
        }
      return;
    }
    for (int64_t i = 0; i < runs; ++i) offset[i] = run_offset(i);
    const int64_t most = std::max<int64_t>(1, longest / std::max<int64_t>(1, length));
    for (int64_t i = 0; i < runs; i += most) pieces[count++] = {i, std::min(most, runs - i), length, i * length};
  }
};

// Multiplies `rows` rows with one panel of `width` lanes: a register tile.
template <class E, class Out>
INLINE void multiply_panel(const GemmTile<E, Out>& product, bool small_k, int64_t width, int rows) {
  if constexpr (values_per<E> == 1)
    if (small_k) return small_k_tiles<E>[width - 1](product, rows);
  if (width == lanes<E>) {
    GemmTiles<E, 1, Out>::by_rows[rows - 1](product);
  } else {
    GemmTiles<E, 2, Out>::by_rows[rows - 1](product);
  }
}

// multiply_panel, piece by piece. All pieces but the last accumulate into a local tile, and the last one stores to C.
template <class E>
void multiply_pieces(const GemmTile<E>& whole, const Pieces& pieces, bool small_k, int64_t width, int rows) {
  if (pieces.count == 1) return multiply_panel(whole, small_k, width, rows);
  Acc<E> tile[max_rows<1>][2 * lanes<E>];
  Acc<E>* waiting[max_rows<1>];
  for (int m = 0; m < rows; ++m) waiting[m] = tile[m];
  GemmTile<E> product = whole;
  for (int64_t i = 0; i < pieces.count; ++i) {
    const auto& [first, runs, length, steps_before] = pieces.pieces[i];
    const bool last = i == pieces.count - 1;
    product.offset = whole.offset + first;
    product.runs = runs;
    product.length = length;
    product.b = whole.b + steps_before * width;
    product.c = last ? whole.c : waiting;
    product.lane = last ? whole.lane : 0;
    if (i > 0) product.from = waiting;
    product.fused = last ? whole.fused : nullptr;
    product.stream = last && whole.stream;
    multiply_panel(product, small_k, width, rows);
  }
}

// The pixels of x that a block of outputs reads: in a patch, or in x itself. Strides are in elements E.
template <class E>
struct SourceView {
  const E* data;                                   // the pixel under the first tap of the first output
  int64_t image_stride, row_stride, col_stride;    // from one output to the next
  int64_t tap_row_stride = 0, tap_col_stride = 0;  // from one tap to the next
};

// One register tile: the address of each of its pixels in the source and in the result.
template <class E, class Out>
struct TileRows {
  const E* a[max_rows<1>];
  Out* c[max_rows<1>];
  int count = 0;
};

// Walks over the pixels of a block in the source and in the result at once. Strides of the result are in elements Out.
template <class E, class Out>
class TileCursor {
 public:
  TileCursor(const Block& block, const SourceView<E>& from, Out* to, int64_t image_stride, int64_t row_stride,
             int64_t col_stride)
      : rows_(block.p_end - block.p),
        cols_(block.q_end - block.q),
        rows_left_(rows_),
        cols_left_(cols_),
        a_(from.data),
        a_col_(from.col_stride),
        a_row_(from.row_stride - cols_ * from.col_stride),
        a_image_(from.image_stride - rows_ * from.row_stride),
        c_(to),
        c_col_(col_stride),
        c_row_(row_stride - cols_ * col_stride),
        c_image_(image_stride - rows_ * row_stride) {}

  // Lists the next `count` pixels.
  INLINE void next(int count, TileRows<E, Out>& tile) {
    tile.count = count;
    for (int m = 0; m < count; ++m) {
      tile.a[m] = a_;
      tile.c[m] = c_;
      a_ += a_col_;
      c_ += c_col_;
      if (--cols_left_ > 0) continue;
      cols_left_ = cols_;
      a_ += a_row_;
      c_ += c_row_;
      if (--rows_left_ > 0) continue;
      rows_left_ = rows_;
      a_ += a_image_;
      c_ += c_image_;
    }
  }

 private:
  int64_t rows_, cols_, rows_left_, cols_left_;
  const E* a_;
  int64_t a_col_, a_row_, a_image_;  // to the next column; from there to the next row; from there to the next image
  Out* c_;
  int64_t c_col_, c_row_, c_image_;
};

}  // namespace gemm
