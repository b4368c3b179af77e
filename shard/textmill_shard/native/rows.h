// Scans rows of scores: the first largest, whether all are finite, and log(sum(exp)).

typedef struct {
  const float *scores;
  int64_t num_rows, width, row_stride;
  int64_t *best;       // first id among equal ones; a NaN is passed over
  uint8_t *not_finite;
  float *log_mass;     // NULL: not wanted; NaN where a row is not finite
  float *best_score;   // NULL: not wanted
} row_scan;

static void scan_row(const row_scan *s, int64_t row) {
  const float *x = s->scores + row * s->row_stride;
  const v16i lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const v16u exponent = (v16u)splat(INFINITY);  // all its bits are set in infinities and NaN alone
  v16f best = splat(-INFINITY);
  v16i best_id = lanes, id = lanes, bad = {0};
  int64_t i = 0;
  for (; i + 16 <= s->width; i += 16) {
    const v16f value = load_f(x + i);
    const v16i is_better = value > best;
    best = pick(is_better, value, best);
    best_id = (id & is_better) | (best_id & ~is_better);
    bad |= ((v16u)value & exponent) == exponent;
    id += 16;
  }
  float highest = max_lanes(best);
  int64_t first = s->width;
  int is_bad = 0;
  for (int lane = 0; lane < 16; lane++) {
    if (best[lane] == highest && best_id[lane] < first) first = best_id[lane];
    is_bad |= bad[lane] != 0;
  }
  for (int64_t j = i; j < s->width; j++) {
    if (x[j] > highest) {
      highest = x[j];
      first = j;
    }
    is_bad |= !isfinite(x[j]);
  }
  s->best[row] = first < s->width ? first : 0;
  s->not_finite[row] = (uint8_t)is_bad;
  if (s->best_score) s->best_score[row] = highest;
  if (!s->log_mass) return;
  v16f sums = splat(0.0f);
  for (i = 0; i + 16 <= s->width; i += 16) sums += exp_v(load_f(x + i) - splat(highest));
  double mass = sum_lanes(sums);
  for (; i < s->width; i++) mass += exp((double)(x[i] - highest));
  s->log_mass[row] = is_bad ? NAN : (float)(highest + log(mass));
}

static void scan_share(const row_scan *s, int64_t member, int64_t size) {
  for (int64_t row = share(s->num_rows, member, size); row < share(s->num_rows, member + 1, size); row++)
    scan_row(s, row);
}
