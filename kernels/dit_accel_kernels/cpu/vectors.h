// Vectors of floats, products of matrices in registers, and threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int W = 16, REGISTERS = 24;
#elif defined(__AVX__)
constexpr int W = 8, REGISTERS = 12;
#else
constexpr int W = 4, REGISTERS = 24;
#endif
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t Int __attribute__((vector_size(4 * W)));
typedef float Loose __attribute__((vector_size(4 * W), aligned(4), may_alias));

static inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
static inline void store(float* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }
static inline Vec splat(float x) { return Vec{} + x; }

// Compute out[r] = start[r] + sum over i < count of left[i * left_i + r * left_r] * right[i], for R rows of N vectors.
// Without start, the sums are added to out.
template <int N, int R, bool DENSE>
static inline void add_rows(const float* left, long left_i, long left_r, const float* right, long right_i, long count,
                            const float* start, float* out, long out_r) {
  if (DENSE) left_r = 1;
  else left_i = 1;
  Vec sum[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sum[r][n] = start ? splat(start[r]) : load(out + r * out_r + n * W);
  for (long i = 0; i < count; i++) {
    Vec x[N];
    for (int n = 0; n < N; n++) x[n] = load(right + i * right_i + n * W);
    for (int r = 0; r < R; r++) {
      const Vec y = splat(left[i * left_i + r * left_r]);
      for (int n = 0; n < N; n++) sum[r][n] += x[n] * y;
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(out + r * out_r + n * W, sum[r][n]);
}

// DENSE tells that left_r is 1. Otherwise left_i is 1. The number of rows is rounded up to the rows of a step.
template <int N, bool DENSE>
static void add_product(const float* left, long left_i, long left_r, const float* right, long right_i, long count,
                        const float* start, float* out, long out_r, long rows) {
  constexpr int R = 8 * N <= REGISTERS ? 8 : 4 * N <= REGISTERS ? 4 : 2;
  for (long r = 0; r < rows; r += R)
    add_rows<N, R, DENSE>(left + r * (DENSE ? 1 : left_r), left_i, left_r, right, right_i, count,
                          start ? start + r : nullptr, out + r * out_r, out_r);
}

static inline float read(float x) { return x; }
static inline float read(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
static inline void write(float* p, float x) { *p = x; }
static inline void write(uint16_t* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *p = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

// Floats at the start of a cache line. Growing loses the content.
class Buffer {
  std::vector<Vec> vectors;

 public:
  float* get(long count) {
    if (count > long(vectors.size()) * W) vectors = std::vector<Vec>((count + W - 1) / W);
    return reinterpret_cast<float*>(vectors.data());
  }
};

// Run work(0, scratch) to work(count - 1, scratch) in threads, each with a scratch of its own.
template <typename Scratch, typename F>
static void share_work(long count, int threads, const F& work) {
  std::atomic<long> next{0};
  const auto run = [&] {
    Scratch scratch;
    for (long i; (i = next++) < count;) work(i, scratch);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < std::min<long>(threads, count); t++) others.emplace_back(run);
  run();
  for (auto& thread : others) thread.join();
}
