// The shard's native kernels: packed linears, paged attention, a whole decoder step, scans of scores, exchanges between
// ranks. See build.py for how it is built.
#include "simd.h"
#include "team.h"
#include "ranks.h"
#include "gemm.h"
#include "low_rank.h"
#include "attention.h"
#include "decoder.h"
#include "rows.h"

#define BFLOAT16 1
#include "element.h"
#include "low_rank_typed.h"
#include "ranks_typed.h"
#include "gemm_typed.h"
#include "attention_typed.h"
#include "decoder_typed.h"
#include "norm_typed.h"
#undef BFLOAT16
#define BFLOAT16 0
#include "element.h"
#include "low_rank_typed.h"
#include "ranks_typed.h"
#include "gemm_typed.h"
#include "attention_typed.h"
#include "decoder_typed.h"
#include "norm_typed.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT const char *textmill_features(void) {
#if defined(__AVX512BF16__)
  return "avx512_bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "plain";
#endif
}

EXPORT team *textmill_team_new(int size) { return team_new(size); }
EXPORT void textmill_team_free(team *t) { team_free(t); }

// Fewer page-table walks while the weights stream by. A wish: the system may not grant it.
EXPORT void textmill_want_huge_pages(void *memory, int64_t num_bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t start = ((uintptr_t)memory + 4095) & ~(uintptr_t)4095;
  const uintptr_t end = ((uintptr_t)memory + (uintptr_t)num_bytes) & ~(uintptr_t)4095;
  if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#endif
}

typedef struct {
  team *team;
  const void *weights;
  int64_t num_outputs, inner, is_gate_up, is_bf16;
  uint32_t *panels;
} packing;

static void pack(void *argument, int member) {
  const packing *p = argument;
  const int64_t half = p->num_outputs / 2;
  const int64_t panels = p->is_gate_up ? (half + 15) / 16 : (p->num_outputs + LANES - 1) / LANES;
  const int64_t panel_words = p->inner / (p->is_bf16 ? 2 : 1) * LANES;
  for (int64_t panel = share(panels, member, p->team->size); panel < share(panels, member + 1, p->team->size); panel++) {
    int64_t rows[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) {
      const int64_t row = p->is_gate_up ? panel * 16 + lane % 16 : panel * LANES + lane;
      rows[lane] = row >= (p->is_gate_up ? half : p->num_outputs) ? -1 : p->is_gate_up && lane >= 16 ? half + row : row;
    }
    if (p->is_bf16)
      pack_panel_bf16(p->weights, p->inner, rows, p->panels + panel * panel_words);
    else
      pack_panel_f32(p->weights, p->inner, rows, p->panels + panel * panel_words);
  }
}

// `weights` [num_outputs, inner], contiguous. With is_gate_up the first half of the outputs is the gate.
EXPORT void textmill_pack(team *t, const void *weights, int64_t num_outputs, int64_t inner, int64_t is_gate_up,
                          int64_t is_bf16, uint32_t *panels) {
  packing p = {t, weights, num_outputs, inner, is_gate_up, is_bf16, panels};
  team_run(t, pack, &p);
}

typedef struct {
  team *team;
  gemm product;
  int64_t num_panels, is_bf16;
} linear_run;

static void linear(void *argument, int member) {
  const linear_run *r = argument;
  const int64_t from = share(r->num_panels, member, r->team->size), to = share(r->num_panels, member + 1, r->team->size);
  if (r->is_bf16)
    run_gemm_bf16(&r->product, from, to);
  else
    run_gemm_f32(&r->product, from, to);
}

// out [num_rows, num_outputs] = rows [num_rows, inner] x panels (+ bias, padded to whole panels); float, or as the rows
EXPORT void textmill_linear(team *t, const void *rows, int64_t num_rows, int64_t inner, const uint32_t *panels,
                            int64_t num_outputs, const float *bias, int64_t is_bf16, int64_t is_narrow, void *out) {
  const int64_t words = inner / (is_bf16 ? 2 : 1);
  linear_run r = {.team = t, .num_panels = (num_outputs + LANES - 1) / LANES, .is_bf16 = is_bf16,
                  .product = {.rows = rows, .row_words = words, .panels = panels, .inner_words = words,
                              .num_rows = num_rows, .num_outputs = num_outputs, .bias = bias, .out = out,
                              .out_stride = num_outputs, .end = is_narrow ? NARROW : STORE}};
  team_run(t, linear, &r);
}

// As `textmill_linear` with narrow outputs, for a product of which each rank has a part: `out` becomes the sum over the
// ranks. The part is written where the other ranks read it, unless it is larger than a bank. Gives the room's failure.
EXPORT int textmill_linear_sum(team *t, rank_room *room, const void *rows, int64_t num_rows, int64_t inner, const uint32_t *panels,
                               int64_t num_outputs, const float *bias, int64_t is_bf16, void *out) {
  const int64_t count = num_rows * num_outputs;
  if (count * (is_bf16 ? 2 : 4) > room->bank_bytes) {
    textmill_linear(t, rows, num_rows, inner, panels, num_outputs, bias, is_bf16, 1, out);
    return is_bf16 ? room_add_bf16(room, out, count) : room_add_f32(room, out, count);
  }
  const uint32_t number = room->num_laid;
  textmill_linear(t, rows, num_rows, inner, panels, num_outputs, bias, is_bf16, 1, room_bank(room, room->rank, number));
  return is_bf16 ? room_add_laid_bf16(room, number, count, out) : room_add_laid_f32(room, number, count, out);
}

typedef struct {
  const attention *attention;
  const attention_item *items;
  int64_t num_items, team_size, is_bf16, scratch_bytes;
  char *scratch;
  atomic_long next;
} attention_run;

static void attend_all(void *argument, int member) {
  attention_run *r = argument;
  char *scratch = r->scratch + member * r->scratch_bytes;
  if (r->is_bf16)
    attend_items_bf16(r->attention, r->items, r->num_items, r->team_size, &r->next, scratch);
  else
    attend_items_f32(r->attention, r->items, r->num_items, r->team_size, &r->next, scratch);
}

// About a microsecond each: waking the others takes longer than so many.
#define ALONE_TILES 64

// 0, or -1 when memory is short.
EXPORT int textmill_attention(team *t, const attention *a, int64_t num_tokens, int64_t is_bf16) {
  attention_run r = {.attention = a, .team_size = t->size, .is_bf16 = is_bf16};
  r.scratch_bytes = round_up(attention_scratch_bytes(a->heads, a->kv_heads, a->key_dim, a->value_dim, NULL, NULL), 64);
  const int64_t item_bytes = round_up((num_tokens + a->num_sequences) * (int64_t)sizeof(attention_item), 64);
  char *memory = team_scratch(t, item_bytes + r.scratch_bytes * t->size);
  if (!memory) return -1;
  attention_item *items = (attention_item *)memory;
  r.num_items = list_items(a->query_starts, a->num_sequences, queries_per_item(a->heads, a->kv_heads), items);
  r.items = items;
  r.scratch = memory + item_bytes;
  int64_t num_tiles = 0;
  for (int64_t i = 0; i < r.num_items; i++)
    num_tiles += (a->context_lens[items[i].sequence] / TILE_PLACES + 1) * a->kv_heads;
  if (num_tiles <= ALONE_TILES) {
    r.team_size = 1;
    attend_all(&r, 0);
  } else {
    team_run(t, attend_all, &r);
  }
  return 0;
}

typedef struct {
  decoder_run run;
  row_scan scan;
} step_run;

static void run_step(void *argument, int member) {
  const step_run *s = argument;
  if (s->run.model->is_bf16)
    decode_bf16((void *)&s->run, member);
  else
    decode_f32((void *)&s->run, member);
  if (!s->scan.best || !s->scan.num_rows) return;
  team_barrier(s->run.team);
  scan_share(&s->scan, member, s->run.team->size);
}

// A second thread makes a step of less shorter by a tenth at most. Beside other work it may have no core for milliseconds,
// for which the caller would wait, so that the caller of such a step works alone.
#define LEAST_SHARED_PRODUCTS (1 << 20)

static int64_t num_products(const decoder *m, const decoder_step *s) {
  const int64_t wide = m->heads * m->head_dim;
  const int64_t of_token = m->hidden * (2 * wide + 2 * m->kv_heads * m->head_dim + 3 * m->mlp);
  int64_t pairs = 0;  // of queries and keys, a mask left out
  for (int64_t i = 0; i < s->num_sequences; i++)
    pairs += (int64_t)(s->query_starts[i + 1] - s->query_starts[i]) * s->context_lens[i];
  return m->num_layers * (s->num_tokens * of_token + 2 * wide * pairs) + s->num_rows * m->hidden * m->vocabulary;
}

// 0, -1 when memory is short, or -2 when an exchange with the other ranks failed.
EXPORT int textmill_decode(team *all, const decoder *m, const decoder_step *s) {
  static team caller = {.size = 1};
  team *t = num_products(m, s) < LEAST_SHARED_PRODUCTS ? &caller : all;
  const int64_t per_word = m->is_bf16 ? 2 : 1, tokens = s->num_tokens, rows = s->num_rows;
  const int64_t kept = rows > 0 ? rows : 1;
  decoder_run r = {.team = t, .model = m, .step = s};
  // Rows of the products are 16 words longer than needed: rows a power of two apart would fight for cache places.
  r.hidden_stride = round_up(m->hidden, LANES);
  r.normed_words = round_up(m->hidden / per_word, 16) + 16;
  r.qkv_stride = round_up((m->heads + 2 * m->kv_heads) * m->head_dim, LANES);
  r.attended_words = round_up(m->heads * m->head_dim / per_word, 16) + 16;
  r.act_words = round_up(round_up(m->mlp, 16) / per_word, 16) + 16;
  r.private_normed_words = PRIVATE_NORM_TOKENS * r.normed_words;
  r.attention_scratch_bytes = round_up(attention_scratch_bytes(m->heads, m->kv_heads, m->head_dim, m->head_dim, NULL, NULL), 64);
  r.z_words = s->most_ranks / per_word;
  const int64_t run_room = s->num_adapters ? tokens : 0, kept_room = s->num_adapters ? kept : 0;
  const int64_t kept_words = r.attended_words > r.normed_words ? r.attended_words : r.normed_words;
  const int64_t sizes[] = {  // in bytes
      4 * tokens * r.hidden_stride, 4 * kept * r.hidden_stride, 4 * tokens * r.qkv_stride, 4 * tokens * m->rotary_dim,
      4 * tokens * r.normed_words, 4 * tokens * r.attended_words, 4 * kept * kept_words, 4 * tokens * r.act_words,
      t->size * r.attention_scratch_bytes, 4 * t->size * r.private_normed_words,
      (tokens + s->num_sequences) * (int64_t)sizeof(attention_item), (m->num_layers * NUM_PHASES + 1) * (int64_t)sizeof(atomic_long),
      4 * run_room * r.z_words, run_room * (int64_t)sizeof(low_rank_run), kept_room * (int64_t)sizeof(low_rank_run), 4 * kept_room,
      8 * s->num_adapters};
  char *parts[sizeof sizes / sizeof *sizes];
  int64_t total = 0;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) total += round_up(sizes[i], 64);
  char *memory = team_scratch(all, total), *next = memory;
  if (!memory) return -1;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; next += round_up(sizes[i], 64), i++) parts[i] = next;
  r.residual = (float *)parts[0];
  r.kept_residual = (float *)parts[1];
  r.qkv = (float *)parts[2];
  r.rope = (float *)parts[3];
  r.normed = (uint32_t *)parts[4];
  r.attended = (uint32_t *)parts[5];
  r.kept_attended = (uint32_t *)parts[6];
  r.act = (uint32_t *)parts[7];
  r.attention_scratch = parts[8];
  r.private_normed = (uint32_t *)parts[9];
  r.items = (attention_item *)parts[10];
  r.next = (atomic_long *)parts[11];
  for (int64_t i = 0; i <= m->num_layers * NUM_PHASES; i++) atomic_init(r.next + i, 0);
  if (s->num_adapters) {
    r.z = (uint32_t *)parts[12];
    r.runs = (low_rank_run *)parts[13];
    r.kept_runs = (low_rank_run *)parts[14];
    r.kept_adapters = (int32_t *)parts[15];
    for (int64_t i = 0; i < rows; i++) r.kept_adapters[i] = s->adapter_of_token[s->logit_rows[i]];
    r.num_runs = list_low_rank_runs(s->adapter_of_token, tokens, s->num_adapters, (int64_t *)parts[16], r.runs);
    r.num_kept_runs = list_low_rank_runs(r.kept_adapters, rows, s->num_adapters, (int64_t *)parts[16], r.kept_runs);
  }
  r.num_items = list_items(s->query_starts, s->num_sequences, queries_per_item(m->heads, m->kv_heads), r.items);
  step_run both = {r, {s->logits, rows, m->vocabulary, m->vocabulary, s->best, s->not_finite, s->log_mass, s->best_score}};
  team_run(t, run_step, &both);
  return m->room && m->room->failure ? -2 : 0;
}

typedef struct {
  team *team;
  row_additions added;
  const uint32_t *rows;
  int64_t row_words, inner, num_runs, num_groups, num_panels, is_bf16, is_narrow;
  const low_rank_run *runs;
  uint32_t *z;
  void *out;
  int64_t out_stride, num_outputs;
} addition_run;

static void shrink_share(const addition_run *r, int64_t member, int64_t size) {
  if (r->is_bf16)
    shrink_share_bf16(r->added.adapters, 0, r->runs, r->num_runs, r->num_groups, member, size, r->rows, r->row_words, r->inner, r->z, r->added.z_words);
  else
    shrink_share_f32(r->added.adapters, 0, r->runs, r->num_runs, r->num_groups, member, size, r->rows, r->row_words, r->inner, r->z, r->added.z_words);
}

static void add_share(const addition_run *r, int64_t member, int64_t size) {
  const int64_t from = share(r->num_panels, member, size), to = share(r->num_panels, member + 1, size);
  if (r->is_bf16)
    add_panels_bf16(&r->added, r->runs, r->num_runs, from, to, r->out, r->out_stride, r->num_outputs, (int)r->is_narrow);
  else
    add_panels_f32(&r->added, r->runs, r->num_runs, from, to, r->out, r->out_stride, r->num_outputs, (int)r->is_narrow);
}

static void add_low_ranks(void *argument, int member) {
  const addition_run *r = argument;
  shrink_share(r, member, r->team->size);
  team_barrier(r->team);
  add_share(r, member, r->team->size);
}

// About ten microseconds: waking the others takes longer than so many.
#define ALONE_PRODUCTS (1 << 18)

// Adds the products of adapters to rows of a linear layer, in place. `rows` [num_rows, inner] and `out` [num_rows, out_stride];
// `adapters` has one product each; -1 in `adapter_of_row` stands for none. 0, or -1 when memory is short.
EXPORT int textmill_low_rank(team *t, const uint32_t *rows, int64_t num_rows, int64_t inner, const low_rank *const *adapters,
                             int64_t num_adapters, const int32_t *adapter_of_row, int64_t is_bf16, int64_t is_narrow, void *out,
                             int64_t out_stride, int64_t num_outputs) {
  const int64_t per_word = is_bf16 ? 2 : 1, groups = most_rank_groups(adapters, num_adapters, 0);
  const int64_t z_words = groups * RANKS_AT_ONCE / per_word;
  const int64_t z_bytes = round_up(4 * num_rows * z_words, 64), run_bytes = round_up(num_rows * (int64_t)sizeof(low_rank_run), 64);
  char *memory = team_scratch(t, z_bytes + run_bytes + round_up(8 * num_adapters, 64));
  if (!memory) return -1;
  addition_run r = {.team = t, .rows = rows, .row_words = inner / per_word, .inner = inner, .num_groups = groups,
                    .num_panels = (num_outputs + LANES - 1) / LANES, .is_bf16 = is_bf16, .is_narrow = is_narrow, .z = (uint32_t *)memory,
                    .out = out, .out_stride = out_stride, .num_outputs = num_outputs,
                    .added = {.adapters = adapters, .adapter_of_row = adapter_of_row, .z = (uint32_t *)memory, .z_words = z_words}};
  low_rank_run *runs = (low_rank_run *)(memory + z_bytes);
  r.num_runs = list_low_rank_runs(adapter_of_row, num_rows, num_adapters, (int64_t *)(memory + z_bytes + run_bytes), runs);
  r.runs = runs;
  if (num_rows * groups * RANKS_AT_ONCE * (inner + num_outputs) <= ALONE_PRODUCTS) {
    shrink_share(&r, 0, 1);
    add_share(&r, 0, 1);
  } else {
    team_run(t, add_low_ranks, &r);
  }
  return 0;
}

typedef struct {
  team *team;
  row_scan rows;
} scan_run;

static void scan(void *argument, int member) {
  const scan_run *r = argument;
  scan_share(&r->rows, member, r->team->size);
}

// A row of 50,000 takes some ten microseconds: waking the others takes longer than so few.
#define ALONE_ROWS 4

EXPORT void textmill_scan_rows(team *t, const float *scores, int64_t num_rows, int64_t width, int64_t row_stride,
                               int64_t *best, uint8_t *not_finite, float *log_mass) {
  scan_run r = {t, {scores, num_rows, width, row_stride, best, not_finite, log_mass, NULL}};
  if (num_rows < ALONE_ROWS)
    scan_share(&r.rows, 0, 1);
  else
    team_run(t, scan, &r);
}

typedef struct {
  team *team;
  const char *rows;
  int64_t num_rows, width, is_bf16;
  const float *weight;
  float epsilon;
  char *out;
} norm_run;

static void rms_norm_share(const norm_run *r, int64_t member, int64_t size) {
  const int64_t row_bytes = r->width * (r->is_bf16 ? 2 : 4);
  for (int64_t row = share(r->num_rows, member, size); row < share(r->num_rows, member + 1, size); row++) {
    const void *from = r->rows + row * row_bytes;
    void *to = r->out + row * row_bytes;
    if (r->is_bf16)
      rms_row_bf16(from, r->weight, r->epsilon, r->width, to);
    else
      rms_row_f32(from, r->weight, r->epsilon, r->width, to);
  }
}

static void rms_norm(void *argument, int member) {
  const norm_run *r = argument;
  rms_norm_share(r, member, r->team->size);
}

// About ten microseconds: waking the others takes longer than so many.
#define ALONE_ELEMENTS 65536

// `rows` and `out` [num_rows, width] elements, contiguous.
EXPORT void textmill_rms_norm(team *t, const void *rows, int64_t num_rows, int64_t width, const float *weight,
                              float epsilon, int64_t is_bf16, void *out) {
  norm_run r = {t, rows, num_rows, width, is_bf16, weight, epsilon, out};
  if (num_rows * width <= ALONE_ELEMENTS)
    rms_norm_share(&r, 0, 1);
  else
    team_run(t, rms_norm, &r);
}

EXPORT int64_t textmill_room_bytes(int64_t num_ranks, int64_t bank_bytes) { return room_bytes(num_ranks, bank_bytes); }
EXPORT rank_room *textmill_room_new(int file, int rank, int num_ranks, int64_t bank_bytes, int64_t timeout_ns) {
  return room_new(file, rank, num_ranks, bank_bytes, timeout_ns);
}
EXPORT void textmill_room_free(rank_room *r) { room_free(r); }
EXPORT int64_t textmill_room_num_exchanges(const rank_room *r) { return r->num_exchanges; }
EXPORT int textmill_room_failure(const rank_room *r) { return r->failure; }
EXPORT int textmill_room_add(rank_room *r, void *numbers, int64_t count, int64_t is_bf16) {
  return is_bf16 ? room_add_bf16(r, numbers, count) : room_add_f32(r, numbers, count);
}
EXPORT int textmill_room_gather(rank_room *r, const void *part, int64_t num_bytes, void *out) {
  return room_gather(r, part, num_bytes, out);
}
EXPORT int textmill_room_send(rank_room *r, const void *message, int64_t num_bytes) { return room_send(r, message, num_bytes); }
EXPORT int textmill_room_await(rank_room *r, int64_t *num_bytes) { return room_await(r, num_bytes); }
EXPORT int textmill_room_take(rank_room *r, void *message, int64_t num_bytes) { return room_take(r, message, num_bytes); }
