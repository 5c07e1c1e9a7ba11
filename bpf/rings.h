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
 * Numbers the record and puts it into its shard's ring. Returns 0, or a negative errno if the ring is full.
 *
 * No wake-up per record: the reader polls every few milliseconds, and an irq_work and a scheduler wake-up would cost the
 * watched process more than the record itself. Only every WAKEUP_BYTES of one lane wake the reader at once.
 * The rings are spelt out because bcc rewrites map calls only outside macros.
 */
static __always_inline int put(struct record_header *record, u64 size, u32 program)
{
	u32 shard = record->connection % SHARDS;
	u32 index = (bpf_get_smp_processor_id() * PROGRAMS + program) * SHARDS + shard;
	struct lane *lane = lanes.lookup(&index);
	u64 flags = BPF_RB_NO_WAKEUP;
	int result = -1;

	if (!lane)
		return -1;
	record->lane = index / SHARDS;
	record->sequence = ++lane->sequence;
	lane->unread += size;
	if (lane->unread > WAKEUP_BYTES) {
		lane->unread = 0;
		flags = BPF_RB_FORCE_WAKEUP;
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
