/* SPDX-License-Identifier: GPL-2.0-only */
/* Copies a call's bytes out of the caller's memory: never more than the call moved, never more than is wanted. */

/* Upper bound of iovec segments that are copied; bytes of later ones are counted as not captured. */
#define MAX_SEGMENTS 256
/* The kernel ends a chain of tail calls at 33. */
#define MAX_MESSAGES 32
/* The kernel takes no more in one call (UIO_MAXIOV). */
#define MOST_MESSAGES 1024

/* Hides from clang what it knows of a value, so that the bound check in front of it survives into the bytecode. */
#define OPAQUE(value) asm volatile("" : "+r"(value))

/*
 * Copies up to `want` bytes, `skip` bytes into the span, behind the record and the `before` bytes that are there already.
 * Returns the bytes that are there now.
 *
 * The running numbers live in the scratch map: what is loaded from a map is just a number to the verifier, so all ways
 * through the loop end in the same state and are pruned. As local variables they cost 670 000 verified instructions of
 * the million allowed (6.18). Lengths are 64 bits wide because for 32-bit ones clang checks a shifted copy and passes on
 * the unchecked register.
 */
static __always_inline u32 copy_span(struct scratch *scratch, struct span *span, u64 skip, u64 want, u64 before)
{
	u64 length, at;

	if (want > CAPTURE_LIMIT)
		want = CAPTURE_LIMIT;
	if (span->segments == 0) {
		OPAQUE(want);
		OPAQUE(before);
		if (want == 0 || want > CAPTURE_LIMIT || before >= CAPTURE_LIMIT)
			return before;
		if (bpf_probe_read_user(scratch->bytes + before, want, (void *)(span->base + skip))) {
			count(STAT_FAULT);
			return before;
		}
		return before + want;
	}
	scratch->cursor.skip = skip;
	scratch->cursor.want = want;
	scratch->cursor.copied = before;
	for (int i = 0; i < MAX_SEGMENTS; i++) {
		struct iovec segment = {};

		if (i >= span->segments || scratch->cursor.want == 0)
			break;
		if (bpf_probe_read_user(&segment, sizeof(segment), (struct iovec *)span->base + i))
			break;
		if (scratch->cursor.skip >= segment.iov_len) {
			scratch->cursor.skip -= segment.iov_len;
			continue;
		}
		length = segment.iov_len - scratch->cursor.skip;
		if (length > scratch->cursor.want)
			length = scratch->cursor.want;
		at = scratch->cursor.copied;
		OPAQUE(length);
		OPAQUE(at);
		if (length > CAPTURE_LIMIT || at >= CAPTURE_LIMIT)
			break;
		if (bpf_probe_read_user(scratch->bytes + at, length, (u8 *)segment.iov_base + scratch->cursor.skip)) {
			count(STAT_FAULT);
			break;
		}
		scratch->cursor.skip = 0;
		scratch->cursor.want -= length;
		scratch->cursor.copied = at + length;
	}
	return scratch->cursor.copied;
}
