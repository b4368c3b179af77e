// Ranks of one machine exchange numbers through a room: memory that all of them have mapped.
//
// Each rank has a mark and two banks. A rank lays its part into the bank of the exchange's parity, moves its mark, waits
// for the marks of the others, and reads their banks. Two banks are enough: whoever lays part n + 2 has seen every rank
// lay part n + 1, and a rank lays that part after it has read the parts n.
//
// A waiting rank spins for some microseconds, then gives its core away, then sleeps on the mark. It wakes now and then to
// look whether the other rank lives, which a lock of that rank on a byte of the memory's file tells.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_RANKS 64
#define ROOM_SPINS 400    // about 10 us
#define ROOM_YIELDS 100   // 50 us on a core that nobody else wants
#define LOOK_AFTER_NS 100000000

typedef struct {
  _Alignas(128) atomic_uint laid;  // parts that this rank has laid; of a follower: messages that it has taken
  atomic_uint num_asleep;          // ranks that sleep until `laid` moves
} rank_mark;

typedef struct {
  char token[128];  // tells this room from every other
  rank_mark marks[MAX_RANKS];
} room_head;

typedef struct {
  room_head *head;
  char *banks;
  int64_t bank_bytes, mapped_bytes, timeout_ns;
  int rank, num_ranks, file;
  int failure;  // 0, 1 + the rank that ended, or -1 - the rank that was waited for too long: no exchange works again
  uint32_t num_laid;
  int64_t num_exchanges;
} rank_room;

static int64_t room_bytes(int64_t num_ranks, int64_t bank_bytes) { return (int64_t)sizeof(room_head) + 2 * num_ranks * bank_bytes; }

static char *room_bank(const rank_room *r, int rank, uint32_t number) {
  return r->banks + (2 * rank + (number & 1)) * r->bank_bytes;
}

static void room_free(rank_room *r) {
  munmap(r->head, (size_t)r->mapped_bytes);
  close(r->file);  // gives the lock back
  free(r);
}

// Maps the file, which belongs to the room from now on. NULL with errno when that fails.
static rank_room *room_new(int file, int rank, int num_ranks, int64_t bank_bytes, int64_t timeout_ns) {
  rank_room *r = calloc(1, sizeof(rank_room));
  if (!r) return NULL;
  const int64_t bytes = room_bytes(num_ranks, bank_bytes);
  void *memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
  if (memory == MAP_FAILED || fcntl(file, F_OFD_SETLK, &lock)) {
    const int failure = errno;
    if (memory != MAP_FAILED) munmap(memory, (size_t)bytes);
    free(r);
    errno = failure;
    return NULL;
  }
  *r = (rank_room){.head = memory, .banks = (char *)memory + sizeof(room_head), .bank_bytes = bank_bytes, .mapped_bytes = bytes,
                   .timeout_ns = timeout_ns, .rank = rank, .num_ranks = num_ranks, .file = file};
  return r;
}

// Whether a rank lives. The lock goes with the process, however it ends.
static int room_has(const rank_room *r, int rank) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
  return fcntl(r->file, F_OFD_GETLK, &lock) || lock.l_type != F_UNLCK;
}

static int64_t room_clock_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// Numbers go round after 2^32 exchanges.
static inline int is_laid(uint32_t laid, uint32_t wanted) { return (int32_t)(laid - wanted) >= 0; }

// Waits until a rank has laid so many parts. Gives the room's failure.
static int room_wait(rank_room *r, int rank, uint32_t wanted) {
  rank_mark *mark = &r->head->marks[rank];
  for (int i = 0; i < ROOM_SPINS + ROOM_YIELDS; i++) {
    if (is_laid(atomic_load_explicit(&mark->laid, memory_order_acquire), wanted)) return 0;
    if (i < ROOM_SPINS)
      relax();
    else
      sched_yield();
  }
  const int64_t began_ns = room_clock_ns();
  for (;;) {
    atomic_fetch_add(&mark->num_asleep, 1);
    const uint32_t seen = atomic_load(&mark->laid);
    const struct timespec longest = {.tv_nsec = LOOK_AFTER_NS};
    if (!is_laid(seen, wanted)) syscall(SYS_futex, &mark->laid, FUTEX_WAIT, seen, &longest, NULL, 0);
    atomic_fetch_sub(&mark->num_asleep, 1);
    if (is_laid(atomic_load_explicit(&mark->laid, memory_order_acquire), wanted)) return 0;
    const int is_there = room_has(r, rank);
    if (is_laid(atomic_load_explicit(&mark->laid, memory_order_acquire), wanted)) return 0;  // its last act
    if (!is_there) return r->failure = 1 + rank;
    if (room_clock_ns() - began_ns > r->timeout_ns) return r->failure = -1 - rank;
  }
}

static void room_move_mark(rank_room *r, uint32_t laid) {
  rank_mark *mark = &r->head->marks[r->rank];
  atomic_store(&mark->laid, laid);
  if (atomic_load(&mark->num_asleep)) syscall(SYS_futex, &mark->laid, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

// Tells the others that this rank's part lies in its bank, and waits for theirs. Gives the room's failure.
static int room_meet(rank_room *r) {
  if (r->failure) return r->failure;
  const uint32_t laid = ++r->num_laid;
  room_move_mark(r, laid);
  for (int other = 0; other < r->num_ranks; other++)
    if (other != r->rank && room_wait(r, other, laid)) return r->failure;
  return 0;
}

// All ranks call this with equal sizes: `out` gets the bytes of rank 0, then those of rank 1, and so on.
static int room_gather(rank_room *r, const char *part, int64_t num_bytes, char *out) {
  r->num_exchanges++;
  for (int64_t from = 0; from < num_bytes; from += r->bank_bytes) {
    const size_t size = (size_t)(num_bytes - from < r->bank_bytes ? num_bytes - from : r->bank_bytes);
    const uint32_t number = r->num_laid;
    memcpy(room_bank(r, r->rank, number), part + from, size);
    if (room_meet(r)) return r->failure;
    for (int rank = 0; rank < r->num_ranks; rank++) memcpy(out + rank * num_bytes + from, room_bank(r, rank, number), size);
  }
  return 0;
}

// A message of rank 0 to all others: 8 bytes with what is left of it, then as much as a bank holds, and so on.
static int64_t room_piece(const rank_room *r, int64_t left) { return left < r->bank_bytes - 8 ? left : r->bank_bytes - 8; }

// Rank 0 calls this. It waits for a rank that has two pieces still to take.
static int room_send(rank_room *r, const char *message, int64_t num_bytes) {
  int64_t sent = 0;
  do {
    if (r->failure) return r->failure;
    for (int other = 1; other < r->num_ranks; other++)
      if (room_wait(r, other, r->num_laid - 1)) return r->failure;
    const int64_t left = num_bytes - sent, size = room_piece(r, left);
    char *bank = room_bank(r, 0, r->num_laid);
    memcpy(bank, &left, 8);
    memcpy(bank + 8, message + sent, (size_t)size);
    room_move_mark(r, ++r->num_laid);
    sent += size;
  } while (sent < num_bytes);
  return 0;
}

// The others call this: `num_bytes` becomes the length of the next message.
static int room_await(rank_room *r, int64_t *num_bytes) {
  if (r->failure || room_wait(r, 0, r->num_laid + 1)) return r->failure;
  memcpy(num_bytes, room_bank(r, 0, r->num_laid), 8);
  return 0;
}

// The others call this after `room_await`.
static int room_take(rank_room *r, char *message, int64_t num_bytes) {
  int64_t taken = 0;
  do {
    if (r->failure || room_wait(r, 0, r->num_laid + 1)) return r->failure;
    const int64_t size = room_piece(r, num_bytes - taken);
    memcpy(message + taken, room_bank(r, 0, r->num_laid) + 8, (size_t)size);
    room_move_mark(r, ++r->num_laid);
    taken += size;
  } while (taken < num_bytes);
  return 0;
}
