// A whole step of a llama-type decoder: embedding, layers, last norm and head, in one run of the team.

typedef struct {
  const void *qkv, *attention_out, *gate_up, *down;  // packed; gate_up: panels of 16 gate and 16 up outputs
  const float *qkv_bias, *attention_out_bias, *gate_up_bias, *down_bias;  // NULL or padded to whole panels
  const float *attention_norm, *mlp_norm;
  const float *query_norm, *key_norm;  // [head_dim] or NULL
  const float *sinks;
  void *keys, *values;
  int64_t window, chunk;
  int64_t has_rope, sees_spans;
  float scaling, softcap;
} decoder_layer;

typedef struct {
  int64_t num_layers, hidden, heads, kv_heads, head_dim, mlp, vocabulary, rotary_dim, block_size, is_bf16;
  const decoder_layer *layers;
  const void *head;       // packed
  const float *head_bias;
  const void *embedding;  // [vocabulary, hidden], or NULL: rows are read from the packed head
  const float *last_norm;
  const float *inverse_frequencies;  // [rotary_dim / 2]
  const uint8_t *axes;  // [rotary_dim / 2]: which of a token's three rotary positions a frequency takes
  float norm_epsilon, rope_factor;
  int64_t first_id, num_embedded;  // ids whose embeddings this rank has: all, unless the ranks add their rows up
  int64_t adds_embeddings;
  rank_room *room;  // of the ranks that have a part of each layer; NULL: this rank has the whole layers
} decoder;

typedef struct {
  int64_t num_tokens, num_sequences, num_rows, table_stride;
  const int64_t *input_ids, *positions, *kv_places, *logit_rows;
  const int32_t *query_starts, *context_lens, *block_tables;
  float *logits;  // [num_rows, vocabulary]
  void *hidden;   // elements [num_tokens, hidden] or NULL
  // What is asked of every row of the logits, while they are near: see rows.h. [num_rows] each, NULL: not wanted.
  int64_t *best;
  uint8_t *not_finite;
  float *log_mass, *best_score;
  int64_t num_adapters;              // of the step's rows; 0: none has one
  int64_t most_ranks;                // of a product of one of them
  const low_rank *const *adapters;   // [num_adapters], each [num_layers * NUM_PRODUCTS + 1]: of each layer, and of the head
  const int32_t *adapter_of_token;   // [num_tokens]; -1: none
  const int64_t *rope_positions;     // [3, num_tokens], or NULL: `positions` turn queries and keys
  const int32_t *span_ends;          // [num_tokens] as in attention.h, or NULL
  int64_t num_media, num_deepstack;  // rows of images in the step, and the first layers that get rows of their own
  const int32_t *media_of_token;     // [num_tokens]: the token's row; -1: none
  const void *media_rows;            // elements [num_media, hidden], in place of embeddings
  const void *deepstack;             // elements [num_deepstack, num_media, hidden], added to the outputs of the first layers
  int64_t *part_ns;  // [num_layers, NUM_PARTS] and then NUM_PARTS_AROUND, or NULL: what each part took, waits included
} decoder_step;

typedef struct {
  team *team;
  const decoder *model;
  const decoder_step *step;
  int64_t num_items;
  attention_item *items;
  atomic_long *next;  // of each phase that threads share out among them: the first thing nobody has taken
  int64_t hidden_stride, normed_words, qkv_stride, query_stride, attended_words, act_words;
  float *residual, *kept_residual, *qkv, *rope;
  uint32_t *normed, *attended, *kept_attended, *act;
  char *attention_scratch;
  int64_t attention_scratch_bytes, private_normed_words;
  uint32_t *private_normed;
  int64_t z_words, num_runs, num_kept_runs;
  uint32_t *z;
  low_rank_run *runs, *kept_runs;  // of all tokens, and of the rows that give logits
  int32_t *kept_adapters;
} decoder_run;

// The products of a layer that adapters can change.
enum { PRODUCT_QKV, PRODUCT_ATTENTION_OUT, PRODUCT_GATE_UP, PRODUCT_DOWN, NUM_PRODUCTS };

// The phases of a layer whose work is taken piece by piece: a thread that another program holds up takes less.
enum { PHASE_QKV, PHASE_ATTEND, PHASE_ATTENTION_OUT, PHASE_GATE_UP, PHASE_DOWN, NUM_PHASES };
#define PIECES_PER_MEMBER 8

// The parts of a step that a profile tells apart, in each layer and around the layers.
enum { PART_ATTENTION_NORM, PART_QKV, PART_PLACE, PART_ATTEND, PART_ATTENTION_OUT, PART_MLP_NORM, PART_GATE_UP, PART_DOWN, NUM_PARTS };
enum { PART_EMBED, PART_LAST_NORM, PART_HEAD, NUM_PARTS_AROUND };

// Alone, a thread reads its own time, in which other programs on its core do not show; several threads wait for each
// other, so that only the common clock tells what a part takes.
static int64_t clock_ns(const decoder_run *r) {
  struct timespec now;
  clock_gettime(r->team->size == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// Notes what passed since the last part ended; the first member speaks for all, since they meet at the end of each part.
INLINE void end_part(const decoder_run *r, int member, int64_t part, int64_t *last_ns) {
  if (!r->step->part_ns || member) return;
  const int64_t now = clock_ns(r);
  r->step->part_ns[part] = now - *last_ns;
  *last_ns = now;
}

// Of the ranks' products one is added to the residual, and the others become what is added to that one.
static inline gemm_end end_of_part(const decoder *m) { return m->room && m->room->rank ? STORE : ADD; }

static void sum_banks_f32(const rank_room *r, uint32_t number, int64_t from, int64_t until, float *to);  // ranks_typed.h

// The residual of all ranks, whose parts the threads have written and not yet met about, becomes the sum of the parts.
// The threads lay and add up a share each, and the first one speaks to the other ranks.
static void add_ranks(const decoder_run *r, int member, float *residual, int64_t tokens) {
  team_barrier(r->team);
  rank_room *room = r->model->room;
  if (!room) return;
  const int64_t count = tokens * r->hidden_stride, per_bank = room->bank_bytes / 4;
  for (int64_t from = 0; from < count; from += per_bank) {
    const int64_t vectors = ((count - from < per_bank ? count - from : per_bank) + 15) / 16;
    const int64_t low = 16 * share(vectors, member, r->team->size), high = 16 * share(vectors, member + 1, r->team->size);
    const uint32_t number = room->num_laid;
    memcpy((float *)room_bank(room, room->rank, number) + low, residual + from + low, (size_t)(high - low) * 4);
    team_barrier(r->team);
    if (!member) {
      if (!from) room->num_exchanges++;
      room_meet(room);  // a failure stays, and ends the step at its end
    }
    team_barrier(r->team);
    sum_banks_f32(room, number, low, high, residual + from);
  }
  team_barrier(r->team);
}

// With few tokens every thread norms all of them for itself: cheaper than meeting once more.
#define PRIVATE_NORM_TOKENS 4
