/* SPDX-License-Identifier: GPL-2.0-only */
/* One ring buffer per shard; a connection's records always go to the same one. */

/* ring_N: records of shard N, oldest first; bound RING_PAGES pages each, overflow is counted and leaves a sequence gap. */
BPF_RINGBUF_OUTPUT(ring_0, RING_PAGES);
#if SHARDS > 1
BPF_RINGBUF_OUTPUT(ring_1, RING_PAGES);
#endif
#if SHARDS > 2
BPF_RINGBUF_OUTPUT(ring_2, RING_PAGES);
#endif
#if SHARDS > 3
BPF_RINGBUF_OUTPUT(ring_3, RING_PAGES);
#endif
#if SHARDS > 4
BPF_RINGBUF_OUTPUT(ring_4, RING_PAGES);
#endif
#if SHARDS > 5
BPF_RINGBUF_OUTPUT(ring_5, RING_PAGES);
#endif
#if SHARDS > 6
BPF_RINGBUF_OUTPUT(ring_6, RING_PAGES);
#endif
#if SHARDS > 7
BPF_RINGBUF_OUTPUT(ring_7, RING_PAGES);
#endif

/*
 * provisional_N: records of shard N of processes that are just born, until the feed chooses them; bound PROVISIONAL_PAGES
 * pages each. Rings of their own, so that what nobody has chosen never takes a byte from what somebody has. The reader
 * reads them before ring_N up to where that was before: nothing of a connection overtakes what came before it.
 */
BPF_RINGBUF_OUTPUT(provisional_0, PROVISIONAL_PAGES);
#if SHARDS > 1
BPF_RINGBUF_OUTPUT(provisional_1, PROVISIONAL_PAGES);
#endif
#if SHARDS > 2
BPF_RINGBUF_OUTPUT(provisional_2, PROVISIONAL_PAGES);
#endif
#if SHARDS > 3
BPF_RINGBUF_OUTPUT(provisional_3, PROVISIONAL_PAGES);
#endif
#if SHARDS > 4
BPF_RINGBUF_OUTPUT(provisional_4, PROVISIONAL_PAGES);
#endif
#if SHARDS > 5
BPF_RINGBUF_OUTPUT(provisional_5, PROVISIONAL_PAGES);
#endif
#if SHARDS > 6
BPF_RINGBUF_OUTPUT(provisional_6, PROVISIONAL_PAGES);
#endif
#if SHARDS > 7
BPF_RINGBUF_OUTPUT(provisional_7, PROVISIONAL_PAGES);
#endif

#include "share.h"

/* Counts a record in its lane, numbers it, and says whether the reader is to be woken. */
static __always_inline u64 number(struct lane *lane, struct record_header *record, u64 size, u32 wakeup_bytes)
{
	record->sequence = ++lane->sequence;
	lane->unread += size;
	if (lane->unread <= wakeup_bytes)
		return BPF_RB_NO_WAKEUP;
	lane->unread = 0;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline int put_provisional(struct record_header *record, u64 size, u32 lane_number)
{
	u32 shard = record->connection % SHARDS;
	u32 index = lane_number * SHARDS + shard;
	struct lane *lane = provisional_lanes.lookup(&index);
	u64 flags;
	int result = -1;

	if (!lane)
		return -1;
	record->lane = PROVISIONAL_LANE | lane_number;
	flags = number(lane, record, size, PROVISIONAL_WAKEUP_BYTES);
	if (shard == 0)
		result = provisional_0.ringbuf_output(record, size, flags);
#if SHARDS > 1
	else if (shard == 1)
		result = provisional_1.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 2
	else if (shard == 2)
		result = provisional_2.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 3
	else if (shard == 3)
		result = provisional_3.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 4
	else if (shard == 4)
		result = provisional_4.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 5
	else if (shard == 5)
		result = provisional_5.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 6
	else if (shard == 6)
		result = provisional_6.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 7
	else if (shard == 7)
		result = provisional_7.ringbuf_output(record, size, flags);
#endif
	count(result ? STAT_PROVISIONAL_FULL : STAT_PROVISIONAL);
	return result;
}

/*
 * Numbers the record and puts it into its shard's ring. Returns 0, or a negative number if the ring is full, or has no
 * room for this connection, which is 0 where nobody knows it any more.
 *
 * No wake-up per record: the reader polls every few milliseconds, and an irq_work and a scheduler wake-up would cost the
 * watched process more than the record itself. Only every WAKEUP_BYTES of one lane wake the reader at once.
 * The rings are spelt out because bcc rewrites map calls only outside macros.
 */
static __always_inline int put(struct record_header *record, struct connection *connection, u64 size, u32 program)
{
	u32 lane_number = bpf_get_smp_processor_id() * PROGRAMS + program;
	u32 shard = record->connection % SHARDS;
	u32 index = lane_number * SHARDS + shard;
	struct lane *lane;
	u64 flags;
	int result = -1;

	if (record->provisional)
		return put_provisional(record, size, lane_number);
	lane = lanes.lookup(&index);
	if (!lane)
		return -1;
	record->lane = lane_number;
	flags = number(lane, record, size, WAKEUP_BYTES);
	if (!has_room(record, connection, size, shard)) {
		count(STAT_SHARE);
		return -1;
	}
	if (shard == 0)
		result = ring_0.ringbuf_output(record, size, flags);
#if SHARDS > 1
	else if (shard == 1)
		result = ring_1.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 2
	else if (shard == 2)
		result = ring_2.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 3
	else if (shard == 3)
		result = ring_3.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 4
	else if (shard == 4)
		result = ring_4.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 5
	else if (shard == 5)
		result = ring_5.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 6
	else if (shard == 6)
		result = ring_6.ringbuf_output(record, size, flags);
#endif
#if SHARDS > 7
	else if (shard == 7)
		result = ring_7.ringbuf_output(record, size, flags);
#endif
	count(result ? STAT_RING_FULL : STAT_RECORDS);
	return result;
}
