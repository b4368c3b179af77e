// Included once per element type, after element.h.

// One row of `width`: x / sqrt(mean of squares + epsilon) * weight, rounded once.
static void NAME(rms_row)(const element *x, const float *weight, float epsilon, int64_t width, element *to) {
  const int64_t whole = width / 16 * 16, rest = width - whole;
  element cut[16] = {0};
  float last[16] = {0};
  memcpy(cut, x + whole, (size_t)rest * sizeof(element));
  memcpy(last, weight + whole, (size_t)rest * sizeof(float));
  const v16f tail = widen(cut);
  v16f squares = tail * tail;
  for (int64_t i = 0; i < whole; i += 16) {
    const v16f value = widen(x + i);
    squares += value * value;
  }
  const v16f scale = splat(1.0f / sqrtf(sum_lanes(squares) / (float)width + epsilon));
  for (int64_t i = 0; i < whole; i += 16) narrow(to + i, widen(x + i) * scale * load_f(weight + i));
  narrow(cut, tail * scale * load_f(last));
  memcpy(to + whole, cut, (size_t)rest * sizeof(element));
}
