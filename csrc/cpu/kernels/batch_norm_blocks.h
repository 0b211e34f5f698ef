// Batch normalization: the blocks that a tensor is cut into, and a pass that writes every element. See batch_norm.h.

namespace batch_norm {

// How a tensor is cut into blocks. In channels_last, a block is some pixels of the batch, with all their channels.
// Otherwise it is a channel of some images, or a part of a channel of one image.
struct Blocks {
  static constexpr int64_t min_pixels = 16, usual_pixels = 256, part_of_channel = 4096;

  const BatchNormShape& shape;
  int64_t per_block;      // pixels, in channels_last
  int64_t images, parts;  // of a block; of an image's channel
  int64_t count;          // blocks of a channel

  explicit Blocks(const BatchNormShape& shape) : shape(shape) {
    const int64_t pixels = shape.N * shape.P, most = std::clamp<int64_t>((1 << 20) / shape.C, 1, 1024);
    per_block = std::max(ceil_div(pixels, most), std::clamp(ceil_div(pixels, 64), min_pixels, usual_pixels));
    images = std::max<int64_t>(1, part_of_channel / shape.P);
    parts = ceil_div(shape.P, part_of_channel);
    count = shape.channels_last ? ceil_div(pixels, per_block) : ceil_div(shape.N, images) * parts;
  }

  // The images and, of each, the pixels of block i; in channels_last, one run of pixels of the batch.
  int64_t rows(int64_t i) const { return shape.channels_last ? 1 : std::min(images, shape.N - i / parts * images); }
  int64_t begin(int64_t i) const {
    return shape.channels_last ? i * per_block : split_begin(shape.P, parts, i % parts);
  }
  int64_t width(int64_t i) const {
    return shape.channels_last ? std::min(per_block, shape.N * shape.P - begin(i))
                               : split_begin(shape.P, parts, i % parts + 1) - begin(i);
  }
  int64_t pixels(int64_t i) const { return rows(i) * width(i); }
  int64_t pixels_before(int64_t i) const { return (shape.channels_last ? 0 : i / parts * images * shape.P) + begin(i); }

  // The first element of block i in a channel.
  int64_t first(int64_t i, int64_t channel) const {
    return shape.channels_last ? begin(i) * shape.C + channel
                               : (i / parts * images * shape.C + channel) * shape.P + begin(i);
  }
};

// A vector of elements of a tensor: the first one and its channel, and how many they are.
struct Place {
  int64_t offset, channel;
  int count;
};

template <class S>
INLINE Vector<S> load_at(const S* p, const Place& place) {
  return place.count == lanes<S> ? load(p + place.offset) : load(p + place.offset, place.count);
}

template <class S>
INLINE void store_at(S* p, Vector<S> v, const Place& place) {
  if (place.count == lanes<S>) {
    store(p + place.offset, v);
  } else {
    store(p + place.offset, v, place.count);
  }
}

// The first `count` lanes; the others are zero.
template <class S>
INLINE Vector<S> first_lanes(Vector<S> v, int count) {
  if (count == lanes<S>) return v;
  Acc<S> kept[lanes<S>] = {};
  store(kept, v, count);
  return load(kept);
}

constexpr double operations_per_element = 4;  // for the work of a task (parallel_for)

// Calls body(place) for each vector of channels of each pixel of a block, in the order in memory: rows read side by
// side take twice as long.
template <class S, class Body>
INLINE void for_each_vector_of_channels(const Blocks& blocks, int64_t block, const Body& body) {
  constexpr int L = lanes<S>;
  const int64_t C = blocks.shape.C;
  int64_t offset = blocks.first(block, 0);
  for (int64_t pixel = blocks.width(block); pixel > 0; --pixel, offset += C) {
    int64_t c = 0;
    for (; c + L <= C; c += L) body(Place{offset + c, c, L});
    if (c < C) body(Place{offset + c, c, int(C - c)});
  }
}

// Writes function(state, place) to every element. function.start(place) makes the state of all vectors of its channels.
template <class S, class Function>
void map(const BatchNormShape& shape, S* to, const Function& function) {
  constexpr int L = lanes<S>;
  const Blocks blocks(shape);
  const int64_t channels = shape.channels_last ? 1 : shape.C, tasks = blocks.count * channels;
  parallel_for(tasks, operations_per_element * shape.elements() / double(tasks), [&](int64_t task) {
    const int64_t block = task / channels, channel = task % channels;
    if (shape.channels_last) {
      for_each_vector_of_channels<S>(blocks, block, [&](const Place& place) __attribute__((always_inline)) {
        store_at(to, function(function.start(place), place), place);
      });
      return;
    }
    int64_t begin = blocks.first(block, channel);
    const auto state = function.start(Place{begin, channel, L});
    for (int64_t row = blocks.rows(block); row > 0; --row, begin += shape.C * shape.P)
      for (int64_t i = begin, end = begin + blocks.width(block); i < end; i += L) {
        const Place place{i, channel, int(std::min<int64_t>(L, end - i))};
        store_at(to, function(state, place), place);
      }
  });
}

}  // namespace batch_norm
