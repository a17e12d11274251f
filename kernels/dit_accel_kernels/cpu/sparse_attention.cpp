// Attend to selected keys and to stand-ins of skipped key groups, in one pass and one softmax.
//
// The lanes of a vector are queries, so no sum runs across a vector. Logits are in units of ln 2.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "vectors.h"

constexpr int LANES = 16;  // query groups that are expanded together
constexpr int CHUNK = 192;  // keys that a tile of queries attends to at a time
constexpr int PAD = 16;    // rows of every matrix are a multiple of this
constexpr int MOST = 768;  // queries of a group that share a chunk of keys
constexpr int BLOCK = 64;  // key groups that are expanded and attended to before the next ones, while caches hold them
constexpr int CENTROID = 1, EXPANSION = 2;
constexpr float LOG2E = 1.44269504f, LOWEST = -1e30f;


static inline long pad(long n) { return (n + PAD - 1) / PAD * PAD; }

// Return 2 ** x for x <= 0. NaN stays NaN.
static inline Vec exp2_of(Vec x) {
  x = x < -126.0f ? splat(-126.0f) : x;
  const Vec shifted = x + 12582912.0f;  // the nearest integer is in the low bits
  const Vec f = x - (shifted - 12582912.0f);
  Vec y = splat(1.535336188e-4f);
  for (float c : {1.339887440e-3f, 9.618437357e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.0f})
    y = y * f + c;
  return (Vec)((Int)y + ((Int)shifted << 23));
}

struct Call {
  const void *query, *key, *value;  // [B, H, S, D]
  void* out;                        // [B, H, Sq, D]
  float* lse;                       // [B, H, Sq], or null
  const bool* selected;
  const int64_t *query_order, *query_offsets, *key_order, *key_offsets;
  int64_t strides[12];  // of batch, head and token, of query, key, value and out
  int64_t batch, heads, queries, keys, head_dim, query_groups, key_groups;
  float scale;
  int32_t is_bfloat16, skipped, threads;  // skipped: 0, CENTROID or EXPANSION
};

// What stands for each key group from one on: a mean key, a mean value and the logit of a query of 0, for some lanes.
struct StandIns {
  float *rows = nullptr, *bias = nullptr;  // [lanes, key groups, width], [key groups, LANES]
  long first = 0;                          // key group
  long stride = 0;                         // from lane to lane
  Buffer row_memory, bias_memory, weights;
};

template <typename T>
static inline void convert(const T* __restrict from, float* __restrict to, long count) {
  for (long d = 0; d < count; d++) to[d] = read(from[d]);
}

// One head: its part of the map, and keys and values in the order of their groups.
struct Head {
  const Call& c;
  long index, batch, head, half, width;
  const bool* selected;
  const int64_t *query_order, *query_offsets, *key_order, *key_offsets;
  Buffer memory;
  float* rows = nullptr;  // [Sk + PAD, width]: key, value
  StandIns centroids;

  Head(const Call& c, long index)
      : c(c), index(index), batch(index / c.heads), head(index % c.heads), half(pad(c.head_dim)), width(2 * half),
        selected(c.selected + index * c.query_groups * c.key_groups), query_order(c.query_order + index * c.queries),
        query_offsets(c.query_offsets + index * (c.query_groups + 1)), key_order(c.key_order + index * c.keys),
        key_offsets(c.key_offsets + index * (c.key_groups + 1)) {}

  template <typename T>
  T* token(int tensor, T* start, long token) const {
    const int64_t* s = c.strides + 3 * tensor;
    return start + batch * s[0] + head * s[1] + token * s[2];
  }

  template <typename T>
  void sort() {
    rows = memory.get((c.keys + PAD) * width);
    for (long i = 0; i < c.keys; i++) {
      const T* key = token(1, static_cast<const T*>(c.key), key_order[i]);
      const T* value = token(2, static_cast<const T*>(c.value), key_order[i]);
      convert(key, rows + i * width, c.head_dim);
      convert(value, rows + i * width + half, c.head_dim);
    }
  }
};

// Turn logits [count, LANES] into weights, and return the logit of a query of 0 for each of W lanes.
static Vec normalize(float* weights, long count) {
  Vec top = splat(LOWEST), total = {}, moment = {}, bias;
  for (long k = 0; k < count; k++) {
    const Vec x = load(weights + k * LANES);
    top = x > top ? x : top;
  }
  for (long k = 0; k < count; k++) {
    const Vec x = load(weights + k * LANES) - top, y = exp2_of(x);
    total += y;
    moment += x * y;
    store(weights + k * LANES, y);
  }
  const Vec share = 1.0f / total;
  for (long k = 0; k < count; k++) store(weights + k * LANES, load(weights + k * LANES) * share);
  // The log-sum-exp is top + log2(total), and the weighted mean logit is top + moment * share.
  for (int lane = 0; lane < W; lane++) bias[lane] = std::log2(total[lane]) - moment[lane] * share[lane];
  return bias;
}

// Expand key groups from first to last about the columns of means [half, LANES].
static void expand(const Head& h, StandIns& to, const float* means, int lanes, long from, long end) {
  static const float zeros[PAD] = {};
  to.first = from;
  to.stride = (end - from) * h.width + PAD;  // PAD keeps lanes apart in the cache
  to.rows = to.row_memory.get(lanes * to.stride);
  to.bias = to.bias_memory.get((end - from) * LANES);
  for (long j = from; j < end; j++) {
    const long first = h.key_offsets[j], count = h.key_offsets[j + 1] - first;
    if (!count) continue;
    const float* rows = h.rows + first * h.width;
    float* weights = to.weights.get((count + PAD) * LANES);
    for (int v = 0; v < LANES; v += W) {
      for (long k = 0; k < count; k += 8)
        add_rows<1, 8, false>(rows + k * h.width, 1, h.width, means + v, LANES, h.c.head_dim, zeros,
                              weights + k * LANES + v, LANES);
      store(to.bias + (j - from) * LANES + v, normalize(weights + v, count));
    }
    float* target = to.rows + (j - from) * h.width;
    long column = 0;
    for (; column + 2 * W <= h.width; column += 2 * W)
      add_product<2, true>(weights, LANES, 1, rows + column, h.width, count, zeros, target + column, to.stride, lanes);
    for (; column < h.width; column += W)
      add_product<1, true>(weights, LANES, 1, rows + column, h.width, count, zeros, target + column, to.stride, lanes);
  }
}

// What products take: pairs of bfloat16 for bfloat16 inputs, if the processor multiplies them, else float.
template <typename T>
using Element = std::conditional_t<PAIRS && std::is_same_v<T, uint16_t>, uint32_t, float>;

// Up to 3 vectors of queries of one group.
struct Tile {
  long first, count;  // positions in the order of queries
  float *query, *sums;  // [half, lanes]; pairs of bfloat16 fill half of query
  float top[3 * W], total[3 * W];
};

// A query group: the lane of its expansions, and its tiles from first to last.
struct Group {
  long index, lane, first, last;
};

// Memory of a thread.
struct Scratch {
  StandIns expansions;
  Buffer means, mean, query, sums, scores, keys, values, key_bias;
  std::vector<Group> groups;
  std::vector<Tile> tiles;
};

static inline void copy_rows(const Head& h, const float* const* rows, long count, float* keys, float* values) {
  const long half = h.half;
  for (long k = 0; k < count; k++) {
    const float* row = rows[k];
    for (long d = 0; d < half; d += W) {
      store(keys + k * half + d, load(row + d));
      store(values + k * half + d, load(row + half + d));
    }
  }
}

static inline void store_weights(float* to, Vec a, Vec b, long stride) { store(to, a), store(to + stride, b); }

static inline void put(float* query, long d, long lanes, long q, float x) { query[d * lanes + q] = x; }

#if defined(__AVX512BF16__)
// Pairs of keys are neighbours in a row, and those of values are neighbouring rows.
static inline void copy_rows(const Head& h, const float* const* rows, long count, uint32_t* keys, uint32_t* values) {
  const long half = h.half;
  for (long k = 0; k < count; k += 2) {
    const float *one = rows[k], *two = rows[k + 1];
    for (long d = 0; d < half; d += W) {
      store_neighbours(keys + (k * half + d) / 2, load(one + d));
      store_neighbours(keys + ((k + 1) * half + d) / 2, load(two + d));
      store(values + k / 2 * half + d, pair(load(one + half + d), load(two + half + d)));
    }
  }
}

static inline void store_weights(uint32_t* to, Vec a, Vec b, long) { store(to, pair(a, b)); }

static inline void put(uint32_t* query, long d, long lanes, long q, float x) {
  write(reinterpret_cast<uint16_t*>(query + d / 2 * lanes + q) + d % 2, x);
}
#endif

// Attend from N vectors of queries to the keys of a chunk. padded is a multiple of 8.
template <int N, typename E>
static void attend(const Head& h, Tile& t, const E* keys, const E* values, const float* key_bias, long padded, float* scores) {
  constexpr long L = N * W, EACH = std::is_same_v<E, float> ? 1 : 2;
  const float unit = h.c.scale * LOG2E;
  E* weights = reinterpret_cast<E*>(scores);  // a row of weights comes after the rows that it is made of
  add_product<N, false>(keys, 1, h.half / EACH, reinterpret_cast<E*>(t.query), L, h.half / EACH, key_bias, scores, L, padded);
  for (int n = 0; n < N; n++) {
    const Vec old = load(t.top + n * W);
    Vec highest = old;
    for (long k = 0; k < padded; k++) {
      const Vec x = unit * load(scores + k * L + n * W);
      highest = x > highest ? x : highest;
    }
    const Vec factor = exp2_of(old - highest);
    Vec total[4] = {};  // long sums lose digits
    for (long k = 0; k < padded; k += 4) {
      Vec y[4];
      for (int part = 0; part < 4; part++) {
        y[part] = exp2_of(unit * load(scores + (k + part) * L + n * W) - highest);
        total[part] += y[part];
      }
      store_weights(weights + k / EACH * L + n * W, y[0], y[1], L);
      store_weights(weights + (k + 2) / EACH * L + n * W, y[2], y[3], L);
    }
    store(t.top + n * W, highest);
    store(t.total + n * W, load(t.total + n * W) * factor + ((total[0] + total[1]) + (total[2] + total[3])));
    for (long d = 0; d < h.half; d++) store(t.sums + d * L + n * W, load(t.sums + d * L + n * W) * factor);
  }
  add_product<N, true>(values, h.half, 1, weights, L, padded / EACH, nullptr, t.sums, L, h.half);
}

// Collects keys, and lets all tiles of a query group attend to each full chunk.
template <typename E>
class Chunk {
  const Head& h;
  Tile *first, *last;
  const float* rows[CHUNK];  // of keys and values
  float *bias, *scores;
  E *keys, *values;
  long count = 0;

 public:
  Chunk(const Head& h, Scratch& s, const Group& g)
      : h(h), first(&s.tiles[g.first]), last(first + (g.last - g.first)), bias(s.key_bias.get(CHUNK)),
        scores(s.scores.get(CHUNK * 3 * W)), keys(reinterpret_cast<E*>(s.keys.get(CHUNK * h.half))),
        values(reinterpret_cast<E*>(s.values.get(CHUNK * h.half))) {}

  void add(const float* row, float row_bias, long n) {
    while (n) {
      const long taken = std::min(n, CHUNK - count), width = h.width;
      for (long k = 0; k < taken; k++) rows[count + k] = row + k * width;
      std::fill(bias + count, bias + count + taken, row_bias / (h.c.scale * LOG2E));
      count += taken, row += taken * width, n -= taken;
      if (count == CHUNK) flush();
    }
  }

  void flush() {
    if (!count) return;
    const long padded = (count + 7) / 8 * 8;
    std::fill(rows + count, rows + padded, h.rows + h.c.keys * h.width);
    std::fill(bias + count, bias + padded, LOWEST);
    copy_rows(h, rows, padded, keys, values);
    for (Tile* t = first; t < last; t++)
      (t->count <= W ? attend<1, E> : t->count <= 2 * W ? attend<2, E> : attend<3, E>)(h, *t, keys, values, bias, padded, scores);
    count = 0;
  }
};

template <typename T>
static void start(const Head& h, Tile& t) {
  const long lanes = (t.count + W - 1) / W * W;
  std::fill(t.top, t.top + 3 * W, LOWEST);
  std::fill(t.total, t.total + 3 * W, 0.0f);
  std::memset(t.query, 0, 4 * h.half * lanes);  // floats or pairs
  std::fill(t.sums, t.sums + h.half * lanes, 0.0f);
  for (long q = 0; q < t.count; q++) {
    const T* from = h.token(0, static_cast<const T*>(h.c.query), h.query_order[t.first + q]);
    const auto query = reinterpret_cast<Element<T>*>(t.query);
    for (long d = 0, n = h.c.head_dim; d < n; d++) put(query, d, lanes, q, read(from[d]));
  }
}

template <typename T>
static void finish(const Head& h, const Tile& t) {
  const Call& c = h.c;
  const long lanes = (t.count + W - 1) / W * W;
  for (long q = 0; q < t.count; q++) {
    const long token = h.query_order[t.first + q];
    const bool empty = t.total[q] == 0.0f;
    T* to = h.token(3, static_cast<T*>(c.out), token);
    const float share = empty ? 0.0f : 1.0f / t.total[q], *__restrict sums = t.sums + q;
    for (long d = 0, n = c.head_dim; d < n; d++) write(to + d, share * sums[d * lanes]);
    if (c.lse) c.lse[h.index * c.queries + token] = empty ? -INFINITY : (t.top[q] + std::log2(t.total[q])) / LOG2E;
  }
}

// Split queries of each group from first to last into tiles: MOST of them after the first skip ones.
// Return whether queries are left.
template <typename T>
static bool split(const Head& h, Scratch& s, long first, long last, long skip) {
  bool left = false;
  s.groups.clear(), s.tiles.clear();
  for (long i = first; i < last; i++) {
    const long from = h.query_offsets[i] + skip, to = std::min(from + MOST, long(h.query_offsets[i + 1]));
    const long vectors = (to - from + W - 1) / W, count = (vectors + 2) / 3;  // only the last vector has lanes left
    if (from >= to) continue;
    left |= to < h.query_offsets[i + 1];
    s.groups.push_back({i, i - first, long(s.tiles.size()), long(s.tiles.size()) + count});
    for (long t = 0; t < count; t++) {
      const long begin = from + vectors * t / count * W, end = std::min(to, from + vectors * (t + 1) / count * W);
      s.tiles.push_back({begin, end - begin});
    }
  }
  const long step = h.half * 3 * W, count = s.tiles.size();
  float *query = s.query.get(count * step), *sums = s.sums.get(count * step);
  for (long t = 0; t < count; t++) {
    s.tiles[t].query = query + t * step, s.tiles[t].sums = sums + t * step;
    start<T>(h, s.tiles[t]);
  }
  return left;
}

// Attend from the queries of a group to key groups from first to last.
template <typename T>
static void attend(const Head& h, Scratch& s, const Group& g, const StandIns& stand_ins, long first, long last) {
  const long lane = h.c.skipped == EXPANSION ? g.lane : 0;
  Chunk<Element<T>> chunk(h, s, g);
  for (long j = first; j < last; j++) {
    const long n = h.key_offsets[j + 1] - h.key_offsets[j], at = j - stand_ins.first;
    if (h.selected[g.index * h.c.key_groups + j]) chunk.add(h.rows + h.key_offsets[j] * h.width, 0.0f, n);
    else if (h.c.skipped && n)
      chunk.add(stand_ins.rows + lane * stand_ins.stride + at * h.width, stand_ins.bias[at * LANES + lane], 1);
  }
  chunk.flush();
}

// Write the scaled mean query of each group from first to last to a column of means [half, LANES].
template <typename T>
static void average(const Head& h, Scratch& s, float* means, long first, long last) {
  const Call& c = h.c;
  std::fill(means, means + h.half * LANES, 0.0f);
  float* mean = s.mean.get(h.half);
  for (long i = first; i < last; i++) {
    std::fill(mean, mean + c.head_dim, 0.0f);
    for (long q = h.query_offsets[i]; q < h.query_offsets[i + 1]; q++) {
      const T* from = h.token(0, static_cast<const T*>(c.query), h.query_order[q]);
      for (long d = 0, n = c.head_dim; d < n; d++) mean[d] += read(from[d]);
    }
    const float share = c.scale * LOG2E / (h.query_offsets[i + 1] - h.query_offsets[i]);
    for (long d = 0; d < c.head_dim; d++) means[d * LANES + i - first] = share * mean[d];
  }
}

// Attend from LANES query groups of a head.
template <typename T>
static void attend_groups(const Head& h, Scratch& s, long first) {
  const Call& c = h.c;
  const bool expands = c.skipped == EXPANSION;
  const long last = std::min(first + LANES, long(c.query_groups)), block = expands ? BLOCK : c.key_groups;
  float* means = s.means.get(h.half * LANES);
  if (expands) average<T>(h, s, means, first, last);
  bool left = true;
  for (long skip = 0; left; skip += MOST) {
    left = split<T>(h, s, first, last, skip);
    for (long j = 0; j < c.key_groups; j += block) {
      const long end = std::min(j + block, long(c.key_groups));
      if (expands) expand(h, s.expansions, means, LANES, j, end);
      for (const Group& g : s.groups) attend<T>(h, s, g, expands ? s.expansions : h.centroids, j, end);
    }
    for (const Tile& tile : s.tiles) finish<T>(h, tile);
  }
}

template <typename T>
static void attend_heads(const Call& c) {
  const long heads = c.batch * c.heads, parts = (c.query_groups + LANES - 1) / LANES, step = 2 * c.threads;
  for (long first = 0; first < heads; first += step) {
    std::vector<Head> some;
    for (long i = first; i < std::min(first + step, heads); i++) some.emplace_back(c, i);
    share_work<Scratch>(some.size(), c.threads, [&](long i, Scratch& s) {
      some[i].template sort<T>();
      if (c.skipped != CENTROID) return;
      float* zeros = s.means.get(some[i].half * LANES);
      std::fill(zeros, zeros + some[i].half * LANES, 0.0f);
      expand(some[i], some[i].centroids, zeros, 8, 0, c.key_groups);
    });
    share_work<Scratch>(some.size() * parts, c.threads,
               [&](long i, Scratch& s) { attend_groups<T>(some[i / parts], s, i % parts * LANES); });
  }
}

extern "C" void sparse_attention(const Call* call) {
  if (call->is_bfloat16) attend_heads<uint16_t>(*call);
  else attend_heads<float>(*call);
}
