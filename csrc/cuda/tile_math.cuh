// Tile products: a thread block of 8 warps multiplies two tiles in shared memory. Each warp accumulates WM x 32
// elements of the 128 x BN result in registers.
//
// A line is a row of A or a column of B. A tile holds 64 bytes of the reduction (k) for each of its lines. KMajorTile
// stores the k elements of a line contiguously, as the channels of a pixel lie in memory. LineMajorTile stores the
// lines of each k contiguously, for the reduction over pixels in grad_weight.
#pragma once

#include "ptx.cuh"

#include <type_traits>

namespace torchconv::cuda {

constexpr int threads = 256;    // per thread block
constexpr int tile_rows = 128;  // lines of the A tile

template <class T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
constexpr int vector_size = 16 / sizeof(T);  // elements in 16 bytes
template <class T>
constexpr int depth = 64 / sizeof(T);  // elements of the reduction in a tile, 64 bytes

// A tile [line][k]. The four 16-byte vectors of a line are XOR-swizzled by the line number, so that vector i of eight
// adjacent lines lies in eight different groups of banks.
template <class T>
struct KMajorTile {
  static constexpr int bytes(int lines) { return lines * 64; }
  T* base;

  // The address of vector i of the line.
  DEVICE T* vector(int line, int i) const { return base + line * depth<T> + (i ^ (line >> 1 & 3)) * vector_size<T>; }
  DEVICE const T& at(int line, int k) const { return vector(line, k / vector_size<T>)[k % vector_size<T>]; }
};

// A tile [k][line] of `count` lines, with padding after each k to avoid bank conflicts.
template <class T, int count>
struct LineMajorTile {
  // In elements: 16 bytes of padding for 16-bit types, 32 bytes otherwise.
  static constexpr int pitch = count + (sizeof(T) == 2 ? 16 : 32) / int(sizeof(T));
  static constexpr int bytes() { return depth<T> * pitch * int(sizeof(T)); }
  T* base;

  // The address of vector i of row k.
  DEVICE T* vector(int k, int i) const { return base + k * pitch + i * vector_size<T>; }
  DEVICE const T& at(int line, int k) const { return base[k * pitch + line]; }
};

// Tensor cores: bfloat16, float16, and float32 rounded to TF32, with float32 accumulators.
template <class T>
struct TensorMath {
  using Element = T;
  using Acc = float;
  static constexpr int blocks = 2;                          // minimum per SM, for __launch_bounds__
  static constexpr bool rounds = std::is_same_v<T, float>;  // to TF32
  // This thread's accumulators of the WM x 32 warp tile: c[m][j] is the fragment of rows 16 m and columns 8 j on.
  template <int WM>
  struct AccTile {
    float c[WM / 16][4][4];
  };

  // Loads four matrices of 8 lines x 16 bytes: lines `line` to `line` + 15, vectors i and i + 1. to[1] holds the second
  // eight lines of vector i if lines_first (a fragment of A), and the first eight lines of vector i + 1 otherwise (two
  // fragments of B).
  static DEVICE void load(uint32_t (&to)[4], const KMajorTile<T>& tile, int line, int i, bool lines_first, int lane) {
    const int matrix = lane / 8, second = matrix % 2, third = matrix / 2;
    ptx::load_matrices(
        to, tile.vector(line + (lines_first ? second : third) * 8 + lane % 8, i + (lines_first ? third : second)));
    round(to);
  }
  // The same from a tile [k][line]. ldmatrix.trans handles 16-bit elements only; TF32 uses scalar loads.
  template <int count>
  static DEVICE void load(uint32_t (&to)[4], const LineMajorTile<T, count>& tile, int line, int i, bool lines_first,
                          int lane) {
    if constexpr (rounds) {
      UNROLL (int j = 0; j < 4; ++j) {
        const int second = j % 2, third = j / 2;
        to[j] = ptx::bits(tile.at(line + lane / 4 + (lines_first ? second : third) * 8,
                                  (i + (lines_first ? third : second)) * vector_size<T> + lane % 4));
      }
      round(to);
    } else {
      const int matrix = lane / 8, second = matrix % 2, third = matrix / 2;
      ptx::load_matrices_transposed(to, tile.vector((i + (lines_first ? third : second)) * 8 + lane % 8,
                                                    line / 8 + (lines_first ? second : third)));
    }
  }
  static DEVICE void round(uint32_t (&bits)[4]) {
    if constexpr (rounds)
      UNROLL (int j = 0; j < 4; ++j) bits[j] = ptx::to_tf32(ptx::number(bits[j]));
  }

  // Accumulates the product of lines a_line to a_line + WM - 1 of A and b_line to b_line + 31 of B.
  template <int WM, class A, class B>
  static DEVICE void multiply(AccTile<WM>& sums, const A& a_tile, int a_line, const B& b_tile, int b_line, int lane) {
    UNROLL (int i = 0; i < 4; i += 2) {
      uint32_t b[2][4];
      UNROLL (int j = 0; j < 2; ++j) load(b[j], b_tile, b_line + j * 16, i, false, lane);
      UNROLL (int m = 0; m < WM / 16; ++m) {
        uint32_t a[4];
        load(a, a_tile, a_line + m * 16, i, true, lane);
        UNROLL (int j = 0; j < 4; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          ptx::multiply(sums.c[m][j], a, column, T{});
        }
      }
    }
  }

  // Calls body(row, column, accumulator) for each accumulator of this thread; row and column within the warp tile.
  template <class, int WM, class Body>
  static DEVICE void each(AccTile<WM>& sums, int lane, const Body& body) {
    UNROLL (int m = 0; m < WM / 16; ++m)
      UNROLL (int j = 0; j < 4; ++j)
        UNROLL (int e = 0; e < 4; ++e)
          body(m * 16 + e / 2 * 8 + lane / 4, j * 8 + lane % 4 * 2 + e % 2, sums.c[m][j][e]);
  }
};

// CUDA cores: float32 at full precision. Each thread has WM / 8 x 8 accumulators.
struct FloatMath {
  using Element = float;
  using Acc = float;
  static constexpr int blocks = 1;
  template <int WM>
  struct AccTile {
    float c[WM / 8][8];
  };
  struct alignas(16) Four {
    float at[4];
  };
  static DEVICE Four read(const float* from) { return *reinterpret_cast<const Four*>(from); }

  // For KMajorTile tiles. A thread has rows lane / 4 + 8 m and columns lane % 4 + 4 j, and reads four steps of k at a
  // time.
  template <int WM>
  static DEVICE void multiply(AccTile<WM>& sums, const KMajorTile<float>& a_tile, int a_line,
                              const KMajorTile<float>& b_tile, int b_line, int lane) {
    UNROLL (int i = 0; i < 4; ++i) {
      Four a[WM / 8];
      UNROLL (int m = 0; m < WM / 8; ++m) a[m] = read(a_tile.vector(a_line + lane / 4 + 8 * m, i));
      UNROLL (int j = 0; j < 8; ++j) {
        const Four b = read(b_tile.vector(b_line + lane % 4 + 4 * j, i));
        UNROLL (int k = 0; k < 4; ++k)
          UNROLL (int m = 0; m < WM / 8; ++m) sums.c[m][j] += a[m].at[k] * b.at[k];
      }
    }
  }
  // For LineMajorTile tiles. A thread has groups of four adjacent rows from lane / 4 * 4 + 32 m on, and of four
  // adjacent columns from lane % 4 * 4 + 16 j on.
  template <int WM, int M, int N>
  static DEVICE void multiply(AccTile<WM>& sums, const LineMajorTile<float, M>& a_tile, int a_line,
                              const LineMajorTile<float, N>& b_tile, int b_line, int lane) {
    UNROLL (int k = 0; k < depth<float>; ++k) {
      Four a[WM / 32], b[2];
      UNROLL (int m = 0; m < WM / 32; ++m) a[m] = read(&a_tile.at(a_line + lane / 4 * 4 + 32 * m, k));
      UNROLL (int j = 0; j < 2; ++j) b[j] = read(&b_tile.at(b_line + lane % 4 * 4 + 16 * j, k));
      UNROLL (int m = 0; m < WM / 8; ++m)
        UNROLL (int j = 0; j < 8; ++j) sums.c[m][j] += a[m / 4].at[m % 4] * b[j / 4].at[j % 4];
    }
  }

  // As in TensorMath. Tile tells which of the two multiply() functions filled the accumulators.
  template <class Tile, int WM, class Body>
  static DEVICE void each(AccTile<WM>& sums, int lane, const Body& body) {
    constexpr bool lines = std::is_same_v<Tile, KMajorTile<float>>;
    UNROLL (int m = 0; m < WM / 8; ++m)
      UNROLL (int j = 0; j < 8; ++j)
        if constexpr (lines)
          body(lane / 4 + 8 * m, lane % 4 + 4 * j, sums.c[m][j]);
        else
          body(lane / 4 * 4 + m % 4 + m / 4 * 32, lane % 4 * 4 + j % 4 + j / 4 * 16, sums.c[m][j]);
  }
};

// Tensor cores: float64.
struct DoubleMath {
  using Element = double;
  using Acc = double;
  static constexpr int blocks = 2;
  template <int WM>
  struct AccTile {
    double c[WM / 8][4][2];
  };

  template <int WM, class A, class B>
  static DEVICE void multiply(AccTile<WM>& sums, const A& a_tile, int a_line, const B& b_tile, int b_line, int lane) {
    UNROLL (int k = 0; k < depth<double>; k += 4) {
      double b[4];
      UNROLL (int j = 0; j < 4; ++j) b[j] = b_tile.at(b_line + j * 8 + lane / 4, k + lane % 4);
      UNROLL (int m = 0; m < WM / 8; ++m) {
        const double a = a_tile.at(a_line + m * 8 + lane / 4, k + lane % 4);
        UNROLL (int j = 0; j < 4; ++j) ptx::multiply(sums.c[m][j], a, b[j]);
      }
    }
  }

  template <class, int WM, class Body>
  static DEVICE void each(AccTile<WM>& sums, int lane, const Body& body) {
    UNROLL (int m = 0; m < WM / 8; ++m)
      UNROLL (int j = 0; j < 4; ++j)
        UNROLL (int e = 0; e < 2; ++e) body(m * 8 + lane / 4, j * 8 + lane % 4 * 2 + e, sums.c[m][j][e]);
  }
};

// The rectangle of the 128 x BN block tile that one warp computes: `rows` x 32 elements.
template <int BN>
struct WarpTile {
  static constexpr int rows = tile_rows * BN / 32 / 8;  // WM
  static DEVICE int row(int warp) { return warp / (BN / 32) * rows; }
  static DEVICE int column(int warp) { return warp % (BN / 32) * 32; }
};

}  // namespace torchconv::cuda
