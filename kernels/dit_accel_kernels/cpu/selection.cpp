// Select the items with the largest scores, as many as a budget pays for.
#include <cstdint>
#include <cstring>
#include <vector>

// Floats of at least 0 are in the order of their bits. NaN counts as 0.
static inline uint32_t order_of(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return score == score ? bits & 0x7fffffff : 0;
}

// Pay for bins from the highest one down, and add their costs to spent. Return the first bin that is too dear, or -1.
static long pay(const std::vector<int64_t>& costs, int64_t allowed, int64_t& spent) {
  long bin = long(costs.size()) - 1;
  for (; bin >= 0 && spent + costs[bin] <= allowed; bin--) spent += costs[bin];
  return bin;
}

// Fill chosen [R, N] from score and cost [R, N]. Items at the threshold have one score: take all or none, whichever comes
// nearer to the budget.
extern "C" void select_shared_budget(const float* score, const int64_t* cost, int64_t rows, int64_t items, double budget, bool* chosen) {
  constexpr long BINS = 1 << 16;
  for (long row = 0; row < rows; row++, score += items, cost += items, chosen += items) {
    std::vector<int64_t> upper(BINS), lower(BINS);
    int64_t total = 0, spent = 0;
    for (long i = 0; i < items; i++) upper[order_of(score[i]) >> 16] += cost[i], total += cost[i];
    const int64_t allowed = int64_t(budget * double(total));
    const long first = pay(upper, allowed, spent);
    for (long i = 0; i < items; i++)
      if (long(order_of(score[i]) >> 16) == first) lower[order_of(score[i]) & (BINS - 1)] += cost[i];
    const long second = first < 0 ? -1 : pay(lower, allowed, spent);
    const int64_t threshold = first < 0 ? -1 : first * BINS + second;
    const bool nearer = second >= 0 && spent + lower[second] - allowed < allowed - spent;
    for (long i = 0; i < items; i++) {
      const int64_t bits = order_of(score[i]);
      chosen[i] = bits > threshold || (nearer && bits == threshold);
    }
  }
}
