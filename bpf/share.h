/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who loses first when a ring fills: the connection, then the process, that has most in it.
 *
 * A process may have as much in a ring as is free of it. So one that floods leaves a third of the ring, and each further
 * one half of what the one before has left. When it has half of that, its connections that have little go first: whoever
 * floods a server does not take its other clients' room. Until a ring is a quarter full, which the ring of a reader that
 * keeps up never is, nobody counts and nobody is refused.
 */

/* Of what is free: what a process may have, and from where on only its light connections may put calls; what is light. */
#define PROCESS_PART 1
#define HEAVY_PART 2
#define LIGHT_PART 8

/*
 * bcc 0.26 has no method that asks a ring. It writes this one as a call that begins with the ring's descriptor,
 * and preprocesses what it has written.
 */
#define bpf_ringbuf_reserve(ring, what, flags) bpf_ringbuf_query(ring, what)

static __always_inline u64 ask_ring(u32 shard, u64 what)
{
	if (shard == 0)
		return (u64)ring_0.ringbuf_reserve(what);
#if SHARDS > 1
	if (shard == 1)
		return (u64)ring_1.ringbuf_reserve(what);
#endif
#if SHARDS > 2
	if (shard == 2)
		return (u64)ring_2.ringbuf_reserve(what);
#endif
#if SHARDS > 3
	if (shard == 3)
		return (u64)ring_3.ringbuf_reserve(what);
#endif
#if SHARDS > 4
	if (shard == 4)
		return (u64)ring_4.ringbuf_reserve(what);
#endif
#if SHARDS > 5
	if (shard == 5)
		return (u64)ring_5.ringbuf_reserve(what);
#endif
#if SHARDS > 6
	if (shard == 6)
		return (u64)ring_6.ringbuf_reserve(what);
#endif
#if SHARDS > 7
	if (shard == 7)
		return (u64)ring_7.ringbuf_reserve(what);
#endif
	return 0;
}

/* What is his of the ring now. Positions: what the reader has consumed, and what was put so far. */
static __always_inline u32 held(struct share *share, u64 consumed, u64 produced)
{
	if (consumed >= share->last) {
		share->before = share->now = 0;
		share->began = produced;
	} else if (consumed >= share->began) {
		share->before = share->now;
		share->now = 0;
		share->began = produced;
	}
	return share->before + share->now;
}

static __always_inline void add_to(struct share *share, u64 size, u64 produced)
{
	share->now += size;
	share->last = produced + size;
}

/* Whether the record's connection (if that is still known) and process may have it in the ring, too. */
static __always_inline bool has_room(struct record_header *record, struct connection *connection, u64 size, u32 shard)
{
	u64 waiting = ask_ring(shard, BPF_RB_AVAIL_DATA);
	u64 key = (u64)record->tgid << 32 | shard;
	struct share fresh = {};
	struct share *process;
	u64 produced, free, theirs, mine;

	if (waiting <= RING_BYTES / 4)
		return true;
	produced = ask_ring(shard, BPF_RB_PROD_POS);
	free = waiting < RING_BYTES ? RING_BYTES - waiting : 0;
	process = shares.lookup_or_try_init(&key, &fresh);
	if (!process)
		return true;
	theirs = held(process, produced - waiting, produced) + size;
	if (theirs > free / PROCESS_PART)
		return false;
	/* What tells of a connection's beginning and end is small, and missed most. */
	if (connection) {
		mine = held(&connection->share, produced - waiting, produced) + size;
		if (record->kind == RECORD_CALL && theirs > free / HEAVY_PART && mine > free / LIGHT_PART)
			return false;
		add_to(&connection->share, size, produced);
	}
	add_to(process, size, produced);
	return true;
}
