// Find the nearest centroid of each token, and add up the tokens of each cluster.
//
// The lanes of a vector are tokens, so no comparison runs across a vector.
#include "vectors.h"

struct Tokens {
  const void* start;  // [B, H, S, D]
  int64_t strides[3];  // of batch, head and token
  int64_t batch, heads, tokens, head_dim;
  int32_t is_bfloat16, threads;

  template <typename T>
  const T* head(long index) const {
    return static_cast<const T*>(start) + index / heads * strides[0] + index % heads * strides[1];
  }
};

struct Products {
  Buffer tokens, scores;
};

// Write the labels of up to N vectors of tokens, the first of which is at from.
template <typename T, int N>
static void label(const Tokens& t, Products& p, const T* from, long count, const float* centroids, const float* bias,
                  long clusters, int64_t* labels) {
  constexpr long L = N * W, CHUNK = 64;
  float *tokens = p.tokens.get(t.head_dim * L), *scores = p.scores.get(CHUNK * L);
  for (long i = 0; i < L; i++)
    for (long d = 0; d < t.head_dim; d++) tokens[d * L + i] = read(from[std::min(i, count - 1) * t.strides[2] + d]);
  Vec best[N];
  Int nearest[N] = {};
  for (int n = 0; n < N; n++) best[n] = splat(-INFINITY);
  for (long first = 0; first < clusters; first += CHUNK) {
    const long rows = std::min(CHUNK, clusters - first);
    add_product<N, false>(centroids + first * t.head_dim, 1, t.head_dim, tokens, L, t.head_dim, bias + first, scores, L, rows);
    for (long k = 0; k < rows; k++)
      for (int n = 0; n < N; n++) {
        const Vec x = load(scores + k * L + n * W);
        nearest[n] = x > best[n] ? Int{} + int32_t(first + k) : nearest[n];
        best[n] = x > best[n] ? x : best[n];
      }
  }
  for (long i = 0; i < count; i++) labels[i] = nearest[i / W][i % W];
}

template <typename T>
static void label_all(const Tokens& t, const float* centroids, const float* bias, long clusters, int64_t* labels) {
  constexpr long L = 3 * W;
  const long blocks = (t.tokens + L - 1) / L;
  share_work<Products>(t.batch * t.heads * blocks, t.threads, [&](long i, Products& p) {
    const long head = i / blocks, first = i % blocks * L;
    label<T, 3>(t, p, t.head<T>(head) + first * t.strides[2], std::min(L, t.tokens - first),
                centroids + head * clusters * t.head_dim, bias + head * clusters, clusters, labels + head * t.tokens + first);
  });
}

struct Nothing {};

// Write the mean of each group's tokens, or of their squares. An empty group gets its row of empty.
template <typename T>
static void average(const Tokens& t, const int64_t* order, const int64_t* offsets, long groups, bool squared, const float* empty,
                    float* means) {
  share_work<Nothing>(t.batch * t.heads, t.threads, [&](long head, Nothing&) {
    const int64_t* bounds = offsets + head * (groups + 1);
    for (long g = 0; g < groups; g++) {
      const long first = bounds[g], last = bounds[g + 1], row = (head * groups + g) * t.head_dim;
      float* __restrict to = means + row;
      if (first == last) {
        std::memcpy(to, empty + row, 4 * t.head_dim);
        continue;
      }
      std::fill(to, to + t.head_dim, 0.0f);
      for (long i = first; i < last; i++) {
        const T* from = t.head<T>(head) + order[head * t.tokens + i] * t.strides[2];
        for (long d = 0; d < t.head_dim; d++) {
          const float x = read(from[d]);
          to[d] += squared ? x * x : x;
        }
      }
      for (long d = 0; d < t.head_dim; d++) to[d] /= last - first;
    }
  });
}

// labels [B, H, S] gets the row of centroids [B, H, K, D] with the largest product plus bias [B, H, K]; 8 divides K.
extern "C" void nearest_centroid(const Tokens* t, const float* centroids, const float* bias, int64_t clusters, int64_t* labels) {
  (t->is_bfloat16 ? label_all<uint16_t> : label_all<float>)(*t, centroids, bias, clusters, labels);
}

// means [B, H, G, D] get the means of groups, given as order [B, H, S] and offsets [B, H, G + 1].
extern "C" void group_means(const Tokens* t, const int64_t* order, const int64_t* offsets, int64_t groups, int32_t squared,
                            const float* empty, float* means) {
  (t->is_bfloat16 ? average<uint16_t> : average<float>)(*t, order, offsets, groups, squared, empty, means);
}

// List the tokens of labels [R, S] group by group: order [R, S] and offsets [R, G + 1], which are 0 before.
// Return false if a label is not in 0 .. G - 1.
extern "C" int32_t group_by_label(const int64_t* labels, int64_t rows, int64_t tokens, int64_t groups, int64_t* order,
                                  int64_t* offsets) {
  for (long i = 0; i < rows * tokens; i++)
    if (labels[i] < 0 || labels[i] >= groups) return false;
  std::vector<int64_t> next(groups);
  for (long row = 0; row < rows; row++, labels += tokens, order += tokens, offsets += groups + 1) {
    for (long i = 0; i < tokens; i++) offsets[labels[i] + 1]++;
    for (long g = 0; g < groups; g++) offsets[g + 1] += next[g] = offsets[g];
    for (long i = 0; i < tokens; i++) order[next[labels[i]]++] = i;
  }
  return true;
}
