// Included once per element type, after element.h.

INLINE void NAME(norm_row)(const float *x, const float *weight, float epsilon, int64_t width, element *to) {
  v16f squares = splat(0.0f);
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) squares += load_f(x + i) * load_f(x + i);
  float sum = sum_lanes(squares);
  for (; i < width; i++) sum += x[i] * x[i];
  const float scale = 1.0f / sqrtf(sum / (float)width + epsilon);
  for (i = 0; i + 16 <= width; i += 16) narrow(to + i, load_f(x + i) * splat(scale) * load_f(weight + i));
  if (i < width) {
    float part[16] = {0};
    element cut[16];
    for (int64_t j = i; j < width; j++) part[j - i] = x[j] * scale * weight[j];
    narrow(cut, load_f(part));
    memcpy(to + i, cut, (size_t)(width - i) * sizeof(element));
  }
}

// `to` becomes the row, or with `is_added` the sum of both.
static void NAME(widen_row)(const element *row, int64_t width, const int is_added, float *to) {
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) store_f(to + i, is_added ? load_f(to + i) + widen(row + i) : widen(row + i));
  for (; i < width; i++) {
    element part[16] = {row[i]};
    float wide[16];
    store_f(wide, widen(part));
    to[i] = is_added ? to[i] + wide[0] : wide[0];
  }
}

static void NAME(embed)(const decoder *m, int64_t id, float *to) {
  id -= m->first_id;
  if (id < 0 || id >= m->num_embedded) {  // another rank has the row
    memset(to, 0, (size_t)m->hidden * 4);
    return;
  }
  if (m->embedding) {
    NAME(widen_row)((const element *)m->embedding + id * m->hidden, m->hidden, 0, to);
    return;
  }
  const int64_t words = m->hidden / PER_WORD;
  const uint32_t *word = (const uint32_t *)m->head + id / LANES * words * LANES + id % LANES;
  for (int64_t k = 0; k < words; k++) {
    const uint32_t bits = word[k * LANES];
#if BFLOAT16
    const uint32_t low = bits << 16, high = bits & 0xffff0000u;
    memcpy(to + 2 * k, &low, 4);
    memcpy(to + 2 * k + 1, &high, 4);
#else
    memcpy(to + k, &bits, 4);
#endif
  }
}

// Norm over a head (optional), then rotation of its first dims: x[i] with x[i + rotary / 2].
static void NAME(turn_head)(const decoder *m, const float *norm, const float *rope, float *x) {
  if (norm) {
    float sum = 0.0f;
    for (int64_t i = 0; i < m->head_dim; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)m->head_dim + m->norm_epsilon);
    for (int64_t i = 0; i < m->head_dim; i++) x[i] = x[i] * scale * norm[i];
  }
  if (!rope) return;
  const int64_t half = m->rotary_dim / 2;
  const float *cosine = rope, *sine = rope + half;
  for (int64_t i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = b * cosine[i] + a * sine[i];
  }
}

INLINE void NAME(narrow_run)(element *to, const float *from, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) narrow(to + i, load_f(from + i));
  if (i < count) {
    float part[16] = {0};
    element cut[16];
    memcpy(part, from + i, (size_t)(count - i) * sizeof(float));
    narrow(cut, load_f(part));
    memcpy(to + i, cut, (size_t)(count - i) * sizeof(element));
  }
}

static void NAME(place_token)(const decoder_run *r, const decoder_layer *layer, int64_t token) {
  const decoder *m = r->model;
  float *x = r->qkv + token * r->qkv_stride;
  const float *rope = layer->has_rope ? r->rope + token * m->rotary_dim : NULL;
  for (int64_t head = 0; head < m->heads; head++) NAME(turn_head)(m, layer->query_norm, rope, x + head * m->head_dim);
  for (int64_t head = m->heads; head < m->heads + m->kv_heads; head++)
    NAME(turn_head)(m, layer->key_norm, rope, x + head * m->head_dim);
  const int64_t query_width = m->heads * m->head_dim, kv_width = m->kv_heads * m->head_dim;
  const int64_t place = r->step->kv_places[token];
  NAME(narrow_run)((element *)layer->keys + place * kv_width, x + query_width, kv_width);
  NAME(narrow_run)((element *)layer->values + place * kv_width, x + query_width + kv_width, kv_width);
#if BFLOAT16
  NAME(narrow_run)((element *)x, x, query_width);  // in place: the writer never overtakes the reader
#endif
}

// Gives where the normed rows of this thread's products stand.
static const uint32_t *NAME(norm)(const decoder_run *r, int member, const float *residual, const float *weight, int64_t tokens) {
  const decoder *m = r->model;
  const int is_private = tokens <= PRIVATE_NORM_TOKENS;
  uint32_t *to = is_private ? r->private_normed + member * r->private_normed_words : r->normed;
  const int64_t from = is_private ? 0 : share(tokens, member, r->team->size);
  const int64_t until = is_private ? tokens : share(tokens, member + 1, r->team->size);
  for (int64_t i = from; i < until; i++)
    NAME(norm_row)(residual + i * r->hidden_stride, weight, m->norm_epsilon, m->hidden, (element *)(to + i * r->normed_words));
  if (!is_private) team_barrier(r->team);
  return to;
}

// Computes z of all rows that have an adapter, and meets the others. Gives whether some adapter changes this product.
static int NAME(shrink)(const decoder_run *r, int member, int64_t number, int is_kept, const gemm *g, row_additions *added) {
  const decoder_step *s = r->step;
  const low_rank_run *runs = is_kept ? r->kept_runs : r->runs;
  const int64_t num_runs = is_kept ? r->num_kept_runs : r->num_runs;
  const int64_t groups = num_runs ? most_rank_groups(s->adapters, s->num_adapters, number) : 0;
  if (!groups) return 0;
  NAME(shrink_share)(s->adapters, number, runs, num_runs, groups, member, r->team->size, g->rows, g->row_words,
                     g->inner_words * PER_WORD, r->z, r->z_words);
  team_barrier(r->team);
  *added = (row_additions){.adapters = s->adapters, .product = number, .z = r->z, .z_words = r->z_words,
                           .adapter_of_row = is_kept ? r->kept_adapters : s->adapter_of_token};
  return 1;
}

// Fetches what this thread reads first when it shrinks the rows for the next product, while the others are still at work.
INLINE void NAME(fetch_next)(const decoder_run *r, int member, int64_t number) {
  const decoder_step *s = r->step;
  const decoder *m = r->model;
  const int64_t product = number % NUM_PRODUCTS, last = m->num_layers * NUM_PRODUCTS;
  const int is_kept = number == last || (number / NUM_PRODUCTS == m->num_layers - 1 && product != PRODUCT_QKV && !s->hidden);
  const int64_t num_runs = is_kept ? r->num_kept_runs : r->num_runs, groups = most_rank_groups(s->adapters, s->num_adapters, number);
  const int64_t first = share(num_runs * groups, member, r->team->size);
  if (first == share(num_runs * groups, member + 1, r->team->size)) return;
  const shrink_piece piece = piece_of_shrink(is_kept ? r->kept_runs : r->runs, groups, first);
  const low_rank *l = s->adapters[piece.run->adapter] + number;
  if (piece.group >= l->num_ranks / RANKS_AT_ONCE) return;
  const int64_t inner = number == last || product == PRODUCT_QKV || product == PRODUCT_GATE_UP ? m->hidden
                        : product == PRODUCT_ATTENTION_OUT ? m->heads * m->head_dim : m->mlp;
  const char *a = (const char *)NAME(ranks_of_piece)(l, piece.group, inner);
  for (int64_t byte = 0; byte < AHEAD_BYTES; byte += 64) __builtin_prefetch(a + byte);
}

// A piece is some panels of one block of rows. The pieces of a block follow each other, so that the threads read the same
// rows at a time.
static void NAME(product)(const decoder_run *r, int member, atomic_long *next, int64_t number, int is_kept, gemm g) {
  row_additions added;
  if (r->step->num_adapters && NAME(shrink)(r, member, number, is_kept, &g, &added)) g.added = &added;
  const int has_next = r->step->num_adapters && number < r->model->num_layers * NUM_PRODUCTS;
  if (has_next)
    for (int64_t i = 0; i < r->step->num_adapters; i++) fetch_product(r->step->adapters[i] + number + 1);
  const int64_t panels = num_panels(&g), blocks = num_row_blocks(&g), wanted = PIECES_PER_MEMBER * r->team->size;
  const int64_t least = panels_at_once(g.num_rows);
  int64_t width = panels * blocks / wanted;
  if (width > panels / 2) width = panels / 2;
  if (width < least) width = least;
  const int64_t per_block = (panels + width - 1) / width;
  for (;;) {
    const int64_t piece = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
    if (piece >= blocks * per_block) break;
    const int64_t from = piece % per_block * width;
    NAME(run_block)(&g, piece / per_block, blocks, from, from + width < panels ? from + width : panels);
  }
  if (has_next) NAME(fetch_next)(r, member, number + 1);
}

static void NAME(attend)(const decoder_run *r, int member, int64_t index) {
  const decoder *m = r->model;
  const decoder_layer *layer = m->layers + index;
  const attention a = {
      .query = r->qkv, .query_token_stride = r->qkv_stride * 4 / (int64_t)sizeof(element), .query_head_stride = m->head_dim,
      .keys = layer->keys, .values = layer->values, .out = r->attended,
      .out_token_stride = r->attended_words * PER_WORD, .out_head_stride = m->head_dim,
      .heads = m->heads, .kv_heads = m->kv_heads, .key_dim = m->head_dim, .value_dim = m->head_dim,
      .block_size = m->block_size, .block_tables = r->step->block_tables, .query_starts = r->step->query_starts,
      .context_lens = r->step->context_lens, .table_stride = r->step->table_stride,
      .num_sequences = r->step->num_sequences, .scaling = layer->scaling, .softcap = layer->softcap,
      .window = layer->window, .chunk = layer->chunk, .sinks = layer->sinks,
      .span_ends = layer->sees_spans ? r->step->span_ends : NULL};
  NAME(attend_items)(&a, r->items, r->num_items, r->team->size, r->next + index * NUM_PHASES + PHASE_ATTEND,
                     r->attention_scratch + member * r->attention_scratch_bytes);
}

// Adds the rows of images for this layer to the layer's output, and meets the others.
static void NAME(add_deepstack)(const decoder_run *r, int member, int64_t layer, int is_kept, int64_t tokens, float *residual) {
  const decoder_step *s = r->step;
  const int64_t hidden = r->model->hidden;
  const element *rows = (const element *)s->deepstack + layer * s->num_media * hidden;
  for (int64_t i = share(tokens, member, r->team->size); i < share(tokens, member + 1, r->team->size); i++) {
    const int64_t media = s->media_of_token[is_kept ? s->logit_rows[i] : i];
    if (media >= 0) NAME(widen_row)(rows + media * hidden, hidden, 1, residual + i * r->hidden_stride);
  }
  team_barrier(r->team);
}

static void NAME(decode)(void *argument, int member) {
  const decoder_run *r = argument;
  const decoder *m = r->model;
  const decoder_step *s = r->step;
  const int size = r->team->size;
  int64_t tokens = s->num_tokens;
  float *residual = r->residual;
  const uint32_t *attended = r->attended;
  const int64_t around = m->num_layers * NUM_PARTS;
  int64_t last_ns = s->part_ns && !member ? clock_ns(r) : 0;

  for (int64_t i = share(tokens, member, size); i < share(tokens, member + 1, size); i++) {
    const int64_t media = s->num_media ? s->media_of_token[i] : -1;
    if (media < 0)
      NAME(embed)(m, s->input_ids[i], residual + i * r->hidden_stride);
    else if (m->adds_embeddings && m->room->rank)
      memset(residual + i * r->hidden_stride, 0, (size_t)m->hidden * 4);  // the row of rank 0 counts
    else
      NAME(widen_row)((const element *)s->media_rows + media * m->hidden, m->hidden, 0, residual + i * r->hidden_stride);
    float *cosine = r->rope + i * m->rotary_dim, *sine = cosine + m->rotary_dim / 2;
    for (int64_t j = 0; j < m->rotary_dim / 2; j++) {
      const int64_t position = s->rope_positions ? s->rope_positions[m->axes[j] * s->num_tokens + i] : s->positions[i];
      const float angle = (float)position * m->inverse_frequencies[j];
      cosine[j] = cosf(angle) * m->rope_factor;
      sine[j] = sinf(angle) * m->rope_factor;
    }
  }
  if (m->adds_embeddings)
    add_ranks(r, member, residual, tokens);
  else
    team_barrier(r->team);
  end_part(r, member, around + PART_EMBED, &last_ns);

  for (int64_t index = 0; index < m->num_layers; index++) {
    const decoder_layer *layer = m->layers + index;
    atomic_long *next = r->next + index * NUM_PHASES;
    const int64_t part = index * NUM_PARTS;
    const uint32_t *normed = NAME(norm)(r, member, residual, layer->attention_norm, tokens);
    end_part(r, member, part + PART_ATTENTION_NORM, &last_ns);
    NAME(product)(r, member, next + PHASE_QKV, index * NUM_PRODUCTS + PRODUCT_QKV, 0, (gemm){.rows = normed, .row_words = r->normed_words, .panels = layer->qkv,
                                    .inner_words = m->hidden / PER_WORD, .num_rows = tokens,
                                    .num_outputs = (m->heads + 2 * m->kv_heads) * m->head_dim, .bias = layer->qkv_bias,
                                    .out = r->qkv, .out_stride = r->qkv_stride, .end = STORE});
    team_barrier(r->team);
    end_part(r, member, part + PART_QKV, &last_ns);
    for (int64_t i = share(tokens, member, size); i < share(tokens, member + 1, size); i++)
      NAME(place_token)(r, layer, i);
    team_barrier(r->team);
    end_part(r, member, part + PART_PLACE, &last_ns);
    if (index == m->num_layers - 1 && !s->hidden && !s->num_rows) return;  // all K and V are written
    NAME(attend)(r, member, index);
    team_barrier(r->team);
    end_part(r, member, part + PART_ATTEND, &last_ns);
    const int is_kept = index == m->num_layers - 1 && !s->hidden;
    if (is_kept) {  // only rows that give logits go on
      tokens = s->num_rows;
      for (int64_t i = share(tokens, member, size); i < share(tokens, member + 1, size); i++) {
        memcpy(r->kept_residual + i * r->hidden_stride, residual + s->logit_rows[i] * r->hidden_stride, (size_t)r->hidden_stride * 4);
        memcpy(r->kept_attended + i * r->attended_words, attended + s->logit_rows[i] * r->attended_words, (size_t)r->attended_words * 4);
      }
      residual = r->kept_residual;
      attended = r->kept_attended;
      team_barrier(r->team);
    }
    NAME(product)(r, member, next + PHASE_ATTENTION_OUT, index * NUM_PRODUCTS + PRODUCT_ATTENTION_OUT, is_kept, (gemm){.rows = attended, .row_words = r->attended_words, .panels = layer->attention_out,
                                    .inner_words = m->heads * m->head_dim / PER_WORD, .num_rows = tokens,
                                    .num_outputs = m->hidden, .bias = layer->attention_out_bias, .out = residual,
                                    .out_stride = r->hidden_stride, .end = end_of_part(m)});
    add_ranks(r, member, residual, tokens);
    end_part(r, member, part + PART_ATTENTION_OUT, &last_ns);
    normed = NAME(norm)(r, member, residual, layer->mlp_norm, tokens);
    end_part(r, member, part + PART_MLP_NORM, &last_ns);
    NAME(product)(r, member, next + PHASE_GATE_UP, index * NUM_PRODUCTS + PRODUCT_GATE_UP, is_kept, (gemm){.rows = normed, .row_words = r->normed_words, .panels = layer->gate_up,
                                    .inner_words = m->hidden / PER_WORD, .num_rows = tokens, .num_outputs = 2 * round_up(m->mlp, 16),
                                    .bias = layer->gate_up_bias, .out = r->act, .out_stride = r->act_words * PER_WORD, .end = GATE});
    team_barrier(r->team);
    end_part(r, member, part + PART_GATE_UP, &last_ns);
    NAME(product)(r, member, next + PHASE_DOWN, index * NUM_PRODUCTS + PRODUCT_DOWN, is_kept, (gemm){.rows = r->act, .row_words = r->act_words, .panels = layer->down,
                                    .inner_words = m->mlp / PER_WORD, .num_rows = tokens, .num_outputs = m->hidden,
                                    .bias = layer->down_bias, .out = residual, .out_stride = r->hidden_stride, .end = end_of_part(m)});
    add_ranks(r, member, residual, tokens);
    if (index < s->num_deepstack) NAME(add_deepstack)(r, member, index, is_kept, tokens, residual);
    end_part(r, member, part + PART_DOWN, &last_ns);
  }

  const uint32_t *normed = NAME(norm)(r, member, residual, m->last_norm, tokens);
  if (s->hidden) {
    const int64_t words = m->hidden / PER_WORD;
    for (int64_t i = share(tokens, member, size); i < share(tokens, member + 1, size); i++)
      memcpy((uint32_t *)s->hidden + i * words, normed + i * r->normed_words, (size_t)words * 4);
    tokens = s->num_rows;
    for (int64_t i = share(tokens, member, size); i < share(tokens, member + 1, size); i++)
      memcpy(r->kept_attended + i * r->normed_words, normed + s->logit_rows[i] * r->normed_words, (size_t)r->normed_words * 4);
    normed = r->kept_attended;
    team_barrier(r->team);
  }
  end_part(r, member, around + PART_LAST_NORM, &last_ns);
  NAME(product)(r, member, r->next + m->num_layers * NUM_PHASES, m->num_layers * NUM_PRODUCTS, 1, (gemm){.rows = normed, .row_words = r->normed_words, .panels = m->head,
                                  .inner_words = m->hidden / PER_WORD, .num_rows = tokens, .num_outputs = m->vocabulary,
                                  .bias = m->head_bias, .out = s->logits, .out_stride = m->vocabulary, .end = STORE});
  if (s->part_ns) team_barrier(r->team);
  end_part(r, member, around + PART_HEAD, &last_ns);
}
