// Included once per element type, after element.h.

// The sums of what all ranks have laid, in the order of the ranks, so that every rank gets equal bits. Rounded once.
static void NAME(sum_banks)(const rank_room *r, uint32_t number, int64_t from, int64_t until, element *to) {
  for (int64_t i = from; i < until; i += 16) {  // banks are whole vectors long
    v16f sum = widen((const element *)room_bank(r, 0, number) + i);
    for (int rank = 1; rank < r->num_ranks; rank++) sum += widen((const element *)room_bank(r, rank, number) + i);
    if (until - i >= 16) {
      narrow(to + i, sum);
    } else {
      element cut[16];
      narrow(cut, sum);
      memcpy(to + i, cut, (size_t)(until - i) * sizeof(element));
    }
  }
}

// All ranks call this: the numbers become the sums over the ranks. Gives the room's failure.
static int NAME(room_add)(rank_room *r, element *numbers, int64_t count) {
  r->num_exchanges++;
  const int64_t per_bank = r->bank_bytes / (int64_t)sizeof(element);
  for (int64_t from = 0; from < count; from += per_bank) {
    const int64_t part = count - from < per_bank ? count - from : per_bank;
    const uint32_t number = r->num_laid;
    memcpy(room_bank(r, r->rank, number), numbers + from, (size_t)part * sizeof(element));
    if (room_meet(r)) return r->failure;
    NAME(sum_banks)(r, number, 0, part, numbers + from);
  }
  return 0;
}

// As `room_add` for numbers of one bank that this rank has written there itself: `to` becomes the sums.
static int NAME(room_add_laid)(rank_room *r, uint32_t number, int64_t count, element *to) {
  r->num_exchanges++;
  if (room_meet(r)) return r->failure;
  NAME(sum_banks)(r, number, 0, count, to);
  return 0;
}
