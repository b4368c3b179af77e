// Products of LoRA adapters: z = scale * (x A^T) per row (shrink), then out += z B^T behind a product's sums (expand).
// A product can have parts, for example query, key and value, each with matrices of its own. A row's result depends on no
// other row: its sums run over the inner axis in one order, whatever rows stand beside it.

#define RANKS_AT_ONCE 8
#define ROWS_AT_ONCE 3    // of one adapter in shrink
#define CHUNK 32          // inner elements that stand side by side in A
#define MAX_PARTS 3
#define AHEAD_BYTES 4096  // of A, fetched before they are needed

typedef struct {
  int64_t num_ranks;    // of all parts; each part has a multiple of 8. 0: the adapter leaves this product alone
  const void *a;        // elements [num_ranks / 8][inner / 32, rounded up][8][32]
  const float *scales;  // [num_ranks]
  int64_t num_parts, is_gate;  // is_gate: the first 16 outputs of a panel are of part 0, the others of part 1
  int64_t first_half[MAX_PARTS];  // half panels of 16 outputs where a part begins, rising
  int64_t first_rank[MAX_PARTS], part_ranks[MAX_PARTS];
  // Of each part [half panels][ranks of the part as words][16]; half panels stand `half_words` apart. Those of gate and up stand
  // in turn, so that what a panel needs of B is read in one stream: processors follow few streams at a time.
  const uint32_t *b[MAX_PARTS];
  int64_t half_words[MAX_PARTS];
} low_rank;

typedef struct row_additions {
  const low_rank *const *adapters;  // for each adapter of the step its products
  int64_t product;                  // index of the product among these
  const int32_t *adapter_of_row;    // -1: none
  const uint32_t *z;                // elements [rows, z_words]
  int64_t z_words;
} row_additions;

// Rows of one adapter that are shrunk together. The runs of an adapter follow each other.
typedef struct {
  int32_t adapter, count;
  int32_t first, num_runs;  // of the adapter: index of its first run, and how many it has
  int32_t rows[ROWS_AT_ONCE];
} low_rank_run;

INLINE const low_rank *product_of_row(const row_additions *a, int64_t row) {
  const int32_t adapter = a->adapter_of_row[row];
  if (adapter < 0) return NULL;
  const low_rank *l = a->adapters[adapter] + a->product;
  return l->num_ranks ? l : NULL;
}

// Writes at most `num_rows` runs, adapter by adapter. `next` has room for one index per adapter.
static int64_t list_low_rank_runs(const int32_t *adapter_of_row, int64_t num_rows, int64_t num_adapters, int64_t *next, low_rank_run *runs) {
  for (int64_t i = 0; i < num_adapters; i++) next[i] = 0;
  for (int64_t row = 0; row < num_rows; row++)
    if (adapter_of_row[row] >= 0) next[adapter_of_row[row]]++;
  int64_t num_runs = 0;
  for (int64_t i = 0; i < num_adapters; i++) {
    const int64_t first = num_runs, of_adapter = (next[i] + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    next[i] = first;
    for (; num_runs < first + of_adapter; num_runs++)
      runs[num_runs] = (low_rank_run){.adapter = (int32_t)i, .first = (int32_t)first, .num_runs = (int32_t)of_adapter};
  }
  for (int64_t row = 0; row < num_rows; row++) {
    if (adapter_of_row[row] < 0) continue;
    low_rank_run *run = runs + next[adapter_of_row[row]];
    run->rows[run->count++] = (int32_t)row;
    if (run->count == ROWS_AT_ONCE) next[adapter_of_row[row]]++;
  }
  return num_runs;
}

// A piece of shrink's work is 8 ranks of an adapter for the rows of a run. The runs of an adapter take the same 8 ranks one
// after the other, because these stay near meanwhile.
typedef struct {
  const low_rank_run *run;
  int64_t group;
} shrink_piece;

// Threads fetch descriptions before they need them, because steps read each of them once.
INLINE void fetch_product(const low_rank *l) {
  for (size_t byte = 0; byte < sizeof *l; byte += 64) __builtin_prefetch((const char *)l + byte);
}

INLINE shrink_piece piece_of_shrink(const low_rank_run *runs, int64_t groups, int64_t number) {
  const low_rank_run *of_adapter = runs + number / groups;
  const int64_t within = number - of_adapter->first * groups;
  return (shrink_piece){runs + of_adapter->first + within % of_adapter->num_runs, within / of_adapter->num_runs};
}

// The most groups of 8 ranks that an adapter of the step has for a product.
static int64_t most_rank_groups(const low_rank *const *adapters, int64_t num_adapters, int64_t product) {
  int64_t most = 0;
  for (int64_t i = 0; i < num_adapters; i++)
    if (adapters[i][product].num_ranks > most) most = adapters[i][product].num_ranks;
  return most / RANKS_AT_ONCE;
}

// Where the outputs of a half panel stand in B: gives the part, and the index of the half panel in the part.
INLINE int64_t part_of_half(const low_rank *l, int64_t half, int64_t *index) {
  if (l->is_gate) {
    *index = half / 2;
    return half % 2;
  }
  int64_t part = l->num_parts - 1;
  while (part && half < l->first_half[part]) part--;
  *index = half - l->first_half[part];
  return part;
}

// What the rows of a block add. `is_first`: of an adapter in the block; `is_whole`: all rows of the tile have one adapter, which
// stands with the first of them.
typedef struct {
  uint8_t is_added, is_first, is_whole;
} row_mark;

// Marks a tile, rows `start` .. `stop` of a block that begins with row `block`.
static void mark_rows(const row_additions *a, int64_t block, int64_t start, int64_t stop, row_mark *marks) {
  const int32_t *adapters = a->adapter_of_row + block;
  int is_whole = 1;
  for (int64_t i = start; i < stop; i++) {
    const int is_added = product_of_row(a, block + i) != NULL;
    int64_t first = 0;
    while (first < i && adapters[first] != adapters[i]) first++;
    marks[i] = (row_mark){.is_added = is_added, .is_first = is_added && first == i};
    is_whole &= is_added && adapters[i] == adapters[start];
  }
  marks[start].is_whole = (uint8_t)is_whole;
}

// What a panel adds to the sums of rows that have one adapter. The halves of the panel have their own B, and their own place
// in z.
typedef struct {
  const uint32_t *b[2];
  int64_t words[2], z_at[2];
  const uint32_t *z;  // of the first row
  int64_t z_words;    // from row to row
} expansion;
