/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Follows framing, so that of a call of any size only its framing is copied: heads (RFC 9112), frame headers and header
 * blocks (RFC 9113). Of chunks not even the size lines: they are read here, and user space gets the sum.
 *
 * User space is the judge. It says where a direction is (struct policy) unless this side found out by itself: from
 * HTTP/2's first bytes, or from a head at the beginning of a call. Where bytes contradict the walk it ends, the rest of the
 * call is copied as ever, and so are the next calls.
 *
 * Each walk is a program of its own for the verifier's sake, and goes on in itself by tail calls where a call is long. All
 * running numbers live in the scratch map, for the reason copy_span gives. Compiled out (WALK 0) where the kernel refuses.
 */

/* A head is looked for in so many bytes of a large call before more is copied. */
#define HEAD_WINDOW (CAPTURE_LIMIT < 4096 ? CAPTURE_LIMIT : 4096)

#define WORD(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)
#define WORD_HTTP WORD('H', 'T', 'T', 'P')
#define WORD_PREFACE WORD('P', 'R', 'I', ' ')

static __always_inline bool begins_with_content(u32 word)
{
	return word == WORD_HTTP || word == WORD('P', 'O', 'S', 'T') || word == WORD('P', 'U', 'T', ' ') ||
	       word == WORD('P', 'A', 'T', 'C');
}

static __always_inline bool begins_message(u32 word)
{
	return begins_with_content(word) || word == WORD('G', 'E', 'T', ' ') || word == WORD('H', 'E', 'A', 'D') ||
	       word == WORD('D', 'E', 'L', 'E') || word == WORD('O', 'P', 'T', 'I') || word == WORD('C', 'O', 'N', 'N') ||
	       word == WORD('T', 'R', 'A', 'C');
}

/* The first four bytes of a call, or 0 where they are not in its first segment. */
static __always_inline u32 first_word(struct span *span)
{
	struct iovec segment = {};
	u64 base = span->base;
	u32 word = 0;

	if (span->segments) {
		if (bpf_probe_read_user(&segment, sizeof(segment), (void *)base) || segment.iov_len < sizeof(word))
			return 0;
		base = (u64)segment.iov_base;
	}
	bpf_probe_read_user(&word, sizeof(word), (void *)base);
	return word;
}

#if WALK

/* As long as the verifier takes them (6.18: see docs/performance.md), and tail calls go on with the rest. */
#define HEAD_STEPS 512
#define CHUNK_STEPS 256
#define FRAME_STEPS 256
/* The kernel ends a chain of tail calls at 33; what led here has taken some. */
#define MAX_TURNS 28

#define PREFACE_SIZE 24
#define FRAME_HEADER 9
#define LARGEST_UNKNOWN_FRAME (1 << 20)
/* A payload not longer than this is copied, for what leads in a piece is not shorter. */
#define SMALL_PAYLOAD 16
#define LONGEST_LINE 96
#define LINE_WINDOW 16
/* Bytes copied behind a head, which tell whether the content that it announces is there: there is none after HEAD. */
#define BEHIND_HEAD 16

static __always_inline struct scratch *this_scratch(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return scratch_map.lookup(&cpu);
}

static __always_inline bool next_segment(struct walker *walker)
{
	struct iovec segment = {};

	if (walker->segment >= walker->segments ||
	    bpf_probe_read_user(&segment, sizeof(segment), (struct iovec *)walker->base + walker->segment))
		return false;
	walker->segment++;
	walker->address = (u64)segment.iov_base;
	walker->available = segment.iov_len < walker->rest ? segment.iov_len : walker->rest;
	return true;
}

static __always_inline void advance(struct walker *walker, u64 size)
{
	walker->address += size;
	walker->available -= size;
	walker->rest -= size;
}

/* Copies the next `size` bytes behind what is copied already; returns how many had room. */
static __always_inline u64 append(struct scratch *scratch, u64 size)
{
	struct walker *walker = &scratch->walker;
	u64 at = walker->captured;
	u64 length = size;

	OPAQUE(at);
	if (at >= CAPTURE_LIMIT)
		return 0;
	if (length > CAPTURE_LIMIT - at)
		length = CAPTURE_LIMIT - at;
	OPAQUE(length);
	if (length > CAPTURE_LIMIT)
		return 0;
	if (bpf_probe_read_user(scratch->bytes + at, length, (void *)walker->address)) {
		count(STAT_FAULT);
		return 0;
	}
	walker->captured = at + length;
	return length;
}

/* The next `size` bytes as part of a piece. */
static __always_inline void append_piece(struct scratch *scratch, u64 size)
{
	struct walker *walker = &scratch->walker;
	struct call_piece *piece;
	u64 at = walker->captured;
	u64 length;

	if (walker->unseen || at == 0) {
		OPAQUE(at);
		if (at >= CAPTURE_LIMIT - sizeof(*piece)) {
			walker->unseen += size;
			return;
		}
		piece = (struct call_piece *)(scratch->bytes + at);
		piece->unseen = walker->unseen;
		piece->length = 0;
		walker->piece = at;
		walker->unseen = 0;
		walker->captured = at + sizeof(*piece);
	}
	length = append(scratch, size);
	at = walker->piece;
	OPAQUE(at);
	if (at < CAPTURE_LIMIT) {
		piece = (struct call_piece *)(scratch->bytes + at);
		piece->length += length;
	}
	walker->unseen += size - length;
}

/* Ends the walk: puts the record, and leaves the state where the next call finds it. */
static __always_inline void finish(struct bpf_raw_tracepoint_args *ctx, struct scratch *scratch, u32 flags)
{
	struct walker *walker = &scratch->walker;
	struct call_record *record = &scratch->record;
	struct connection *connection = connections.lookup(&walker->sk);
	u64 captured = walker->whole ? record->captured : walker->captured;

	if (walker->failed || walker->rest)
		walker->walk.state = WALK_NONE;
	if (connection && connection->id != record->header.connection)
		connection = 0;
	if (connection) {
		walker->walk.position = record->position + record->size;
		connection->walks[record->header.direction & 1] = walker->walk;
	}
	record->header.flags = (walker->whole ? 0 : flags) | (walker->walk.state ? HOW_WALKED : 0);
	OPAQUE(captured);
	if (captured > CAPTURE_LIMIT + sizeof(struct call_chunks)) {
		/* No walk is to come here. If one does, the call is there all the same, with none of its bytes. */
		count(STAT_FAULT);
		record->header.flags = 0;
		captured = 0;
	}
	record->captured = captured;
	put(&record->header, connection, sizeof(*record) + captured, PROGRAM_CALL);
	if (record->header.call == CALL_SENDMMSG || record->header.call == CALL_RECVMMSG)
		tail_programs.call(ctx, TAIL_MESSAGES);
}

/* -- HTTP/2 -- */

/* The frame header in `head` is whole: what of its payload is wanted. False: no sane peer sends it. */
static __always_inline bool begin_frame(struct walker *walker)
{
	u8 *head = walker->head;
	u32 length = (u32)head[0] << 16 | (u32)head[1] << 8 | head[2];
	u32 stream = (u32)(head[5] & 0x7f) | head[6] | head[7] | head[8];
	u32 wanted = length <= SMALL_PAYLOAD ? length : 0;
	bool sound = true;

	switch (head[3]) {
	case 0: /* DATA: the length of its padding, if it has one */
		sound = stream != 0;
		if (head[4] & 8 && length && !wanted)
			wanted = 1;
		break;
	case 1: /* HEADERS */
	case 5: /* PUSH_PROMISE */
	case 9: /* CONTINUATION */
		sound = stream != 0;
		wanted = length;
		break;
	case 2: /* PRIORITY */
		sound = stream != 0 && length == 5;
		break;
	case 3: /* RST_STREAM */
		sound = stream != 0 && length == 4;
		break;
	case 4: /* SETTINGS */
		sound = stream == 0 && length % 6 == 0;
		wanted = length;
		break;
	case 6: /* PING */
		sound = stream == 0 && length == 8;
		break;
	case 7: /* GOAWAY */
		sound = stream == 0 && length >= 8;
		wanted = length;
		break;
	case 8: /* WINDOW_UPDATE */
		sound = length == 4;
		break;
	default:
		sound = length <= LARGEST_UNKNOWN_FRAME;
	}
	walker->walk.left = length;
	walker->walk.wanted = wanted;
	walker->walk.phase = 0;
	return sound;
}

/* The rest of the call is copied as if nobody had walked. */
static __always_inline void give_up_frames(struct walker *walker)
{
	walker->failed = 1;
	walker->walk.left = walker->rest;
	walker->walk.wanted = walker->rest;
}

static __always_inline bool frame_step(struct scratch *scratch)
{
	struct walker *walker = &scratch->walker;
	bool copied = true;
	u64 size, at;

	if (walker->available == 0)
		return next_segment(walker);
	if (walker->walk.left) {
		copied = walker->walk.wanted != 0;
		size = copied ? walker->walk.wanted : walker->walk.left;
		if (size > walker->available)
			size = walker->available;
		walker->walk.left -= size;
		if (copied)
			walker->walk.wanted -= size;
	} else {
		at = walker->walk.phase;
		OPAQUE(at);
		if (at >= FRAME_HEADER)
			return false;
		size = FRAME_HEADER - at;
		if (size > walker->available)
			size = walker->available;
		OPAQUE(size);
		if (size > FRAME_HEADER || bpf_probe_read_user(walker->head + at, size, (void *)walker->address))
			return false;
		walker->walk.phase = at + size;
	}
	if (walker->whole)
		;
	else if (copied)
		append_piece(scratch, size);
	else
		walker->unseen += size;
	advance(walker, size);
	if (walker->walk.phase == FRAME_HEADER && !begin_frame(walker))
		give_up_frames(walker);
	return true;
}

int tail_frames(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *scratch = this_scratch();
	struct walker *walker;

	if (!scratch)
		return 0;
	walker = &scratch->walker;
	for (int i = 0; i < FRAME_STEPS; i++) {
		if (walker->rest == 0)
			break;
		if (!frame_step(scratch)) {
			walker->failed = 1;
			goto out;
		}
	}
	if (walker->rest && walker->turns && walker->turns--)
		tail_programs.call(ctx, TAIL_FRAMES);
out:
	__builtin_memcpy(walker->walk.head, walker->head, FRAME_HEADER);
	finish(ctx, scratch, HOW_PIECES);
	return 0;
}

/* -- HTTP/1 in chunks -- */

/* Copies the bytes of the present line. */
static __always_inline void append_line(struct scratch *scratch)
{
	struct walker *walker = &scratch->walker;
	u64 at = walker->captured;
	u64 size = walker->line_size;

	walker->line_size = 0;
	OPAQUE(at);
	if (walker->whole || at >= CAPTURE_LIMIT || size == 0)
		return;
	if (size > CAPTURE_LIMIT - at)
		size = CAPTURE_LIMIT - at;
	OPAQUE(size);
	if (size > sizeof(walker->line))
		return;
	bpf_probe_read_kernel(scratch->bytes + at, size, walker->line);
	walker->captured = at + size;
}

/* `size` bytes that are not copied, `content` of them content. */
static __always_inline void pass_chunks(struct walker *walker, u64 size, u64 content)
{
	if (walker->passed == 0)
		walker->front = walker->captured;
	walker->passed += size;
	walker->content += content;
}

enum line_state {
	LINE_ON = 0,
	LINE_OVER = 1,
	LINE_BAD = 2,
};

/* Takes one byte of the line end after a chunk's content, or of a chunk-size line. */
static __always_inline u32 line_byte(struct walk *walk, u8 byte)
{
	u8 lower = byte | 0x20;
	u32 digit = 16;

	switch (walk->phase) {
	case CHUNK_END:
		walk->wanted = 0;
		walk->digits = 0;
		if (byte == '\r')
			walk->phase = CHUNK_END_LF;
		else if (byte == '\n')
			walk->phase = CHUNK_SIZE;
		else
			return LINE_BAD;
		return LINE_ON;
	case CHUNK_END_LF:
		walk->phase = CHUNK_SIZE;
		return byte == '\n' ? LINE_ON : LINE_BAD;
	case CHUNK_SIZE:
		if (byte >= '0' && byte <= '9')
			digit = byte - '0';
		else if (lower >= 'a' && lower <= 'f')
			digit = lower - 'a' + 10;
		if (digit < 16) {
			walk->wanted = walk->wanted << 4 | digit;
			/* Eight digits are more than a chunk that anybody sends; leading zeros count as well. */
			return ++walk->digits < 8 ? LINE_ON : LINE_BAD;
		}
		if (walk->digits == 0)
			return LINE_BAD;
		/* fall through */
	case CHUNK_SPACE:
		if (byte == ' ' || byte == '\t')
			walk->phase = CHUNK_SPACE;
		else if (byte == ';')
			walk->phase = CHUNK_EXTENSION;
		else if (byte == '\r')
			walk->phase = CHUNK_SIZE_LF;
		else
			return byte == '\n' ? LINE_OVER : LINE_BAD;
		return LINE_ON;
	case CHUNK_EXTENSION:
		return byte == '\n' ? LINE_OVER : LINE_ON;
	default: /* CHUNK_SIZE_LF */
		return byte == '\n' ? LINE_OVER : LINE_BAD;
	}
}

/* From here on bytes are copied as if nobody had walked: behind the last chunk, or where no chunk can be. */
static __always_inline void leave_chunks(struct scratch *scratch)
{
	struct walker *walker = &scratch->walker;

	append_line(scratch);
	walker->walk.state = WALK_NONE;
	walker->walk.wanted = 0;
}

static __always_inline bool chunk_step(struct scratch *scratch)
{
	struct walker *walker = &scratch->walker;
	u64 size, at;
	u32 state;

	if (walker->available == 0)
		return next_segment(walker);
	if (walker->skip) {
		size = walker->skip < walker->available ? walker->skip : walker->available;
		walker->skip -= size;
		advance(walker, size);
		return true;
	}
	if (walker->walk.state != WALK_CHUNKS) {
		size = walker->available;
		if (!walker->whole) {
			if (size > walker->limit)
				size = walker->limit;
			if (size == 0 || append(scratch, size) != size)
				return false;
			walker->limit -= size;
		}
		advance(walker, size);
		return true;
	}
	if (walker->walk.left) {
		size = walker->walk.left < walker->available ? walker->walk.left : walker->available;
		walker->walk.left -= size;
		pass_chunks(walker, size, size);
		advance(walker, size);
		return true;
	}
	at = walker->line_size;
	OPAQUE(at);
	if (at >= LONGEST_LINE) {
		leave_chunks(scratch);
		return true;
	}
	if (walker->ahead == 0) {
		size = walker->available < LINE_WINDOW ? walker->available : LINE_WINDOW;
		OPAQUE(size);
		if (size > LINE_WINDOW || bpf_probe_read_user(walker->line + at, size, (void *)walker->address))
			return false;
		walker->ahead = size;
	}
	state = line_byte(&walker->walk, walker->line[at]);
	walker->line_size = at + 1;
	walker->ahead--;
	advance(walker, 1);
	if (state == LINE_ON)
		return true;
	walker->ahead = 0;
	if (state == LINE_BAD || walker->walk.wanted == 0) {
		leave_chunks(scratch);
		return true;
	}
	walker->walk.left = walker->walk.wanted;
	walker->walk.phase = CHUNK_END;
	if (walker->cut)
		append_line(scratch); /* its beginning was copied with an earlier call */
	else
		pass_chunks(walker, walker->line_size, 0);
	walker->line_size = 0;
	walker->cut = 0;
	return true;
}

int tail_chunks(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *scratch = this_scratch();
	struct call_chunks *chunks;
	struct walker *walker;
	struct span span = {};
	u32 flags = 0;
	u64 at, want;

	if (!scratch)
		return 0;
	walker = &scratch->walker;
	for (int i = 0; i < CHUNK_STEPS; i++) {
		if (walker->rest == 0)
			break;
		if (!chunk_step(scratch)) {
			walker->failed = 1;
			goto out;
		}
	}
	if (walker->rest && walker->turns && walker->turns--)
		tail_programs.call(ctx, TAIL_CHUNKS);
out:
	append_line(scratch);
	if (walker->rest && !walker->failed && !walker->whole) {
		/* More lines than there are steps: user space goes on. */
		span.base = walker->base;
		span.segments = walker->segments;
		want = walker->captured < CAPTURE_LIMIT ? CAPTURE_LIMIT - walker->captured : 0;
		if (want > walker->limit)
			want = walker->limit;
		walker->captured =
			copy_span(scratch, &span, scratch->record.size - walker->rest, want, walker->captured);
	}
	at = walker->captured;
	OPAQUE(at);
	if (walker->passed && !walker->whole && at <= CAPTURE_LIMIT) {
		chunks = (struct call_chunks *)(scratch->bytes + at);
		chunks->front = walker->front;
		chunks->unseen = walker->passed;
		chunks->content = walker->content;
		chunks->left = walker->walk.left;
		walker->captured = at + sizeof(*chunks);
		flags = HOW_CHUNKS;
	}
	finish(ctx, scratch, flags);
	return 0;
}

/* -- HTTP/1 heads -- */

#define LOWER 0x2020202020202020ULL
#define BYTES(byte) ((byte)*0x0101010101010101ULL)

/* Field names, lower case, as they lie in memory; ":" and "-" have the bit that makes letters lower-case. */
#define NAME_CONTENT 0x2d746e65746e6f63ULL  /* "content-" */
#define NAME_LENGTH 0x3a6874676e656cULL     /* "length:" */
#define NAME_TRANSFER 0x726566736e617274ULL /* "transfer" */
#define NAME_ENCODING 0x6e69646f636e652dULL /* "-encodin" */
#define NAME_G 0x3a67                       /* "g:" */

enum head_state {
	HEAD_ON = 0,
	HEAD_OVER = 1,
	HEAD_CUT = 2,
};

/* Goes on to the next line of the head that begins `bytes`; notes the fields that say how long the content is. */
static __always_inline u32 head_step(struct scratch *scratch, u64 size)
{
	struct walker *walker = &scratch->walker;
	u64 at = walker->head_at;
	u64 word, ends, name;

	OPAQUE(at);
	if (at >= CAPTURE_LIMIT || at >= size)
		return HEAD_CUT;
	word = *(u64 *)(scratch->bytes + at) ^ BYTES('\n');
	ends = (word - BYTES(1)) & ~word & BYTES(0x80);
	if (!ends) {
		walker->head_at = at + 8;
		return HEAD_ON;
	}
	/* How many bytes up to and with the first line end: one bit of each is below it. */
	at += ((((ends & -ends) - 1) & BYTES(1)) * BYTES(1)) >> 56;
	walker->head_at = at;
	OPAQUE(at);
	if (at >= CAPTURE_LIMIT || at >= size)
		return HEAD_CUT;
	word = *(u64 *)(scratch->bytes + at);
	if ((word & 0xff) == '\n' || (word & 0xffff) == WORD('\r', '\n', 0, 0)) {
		walker->head_at = at + ((word & 0xff) == '\n' ? 1 : 2);
		return walker->head_at <= size ? HEAD_OVER : HEAD_CUT;
	}
	word |= LOWER;
	name = *(u64 *)(scratch->bytes + at + 8) | LOWER;
	if (word == NAME_CONTENT && (name & 0xffffffffffffffULL) == NAME_LENGTH) {
		walker->length_at = at + 15;
		walker->fields++;
	} else if (word == NAME_TRANSFER && name == NAME_ENCODING &&
		   (*(u16 *)(scratch->bytes + at + 16) | 0x2020) == NAME_G) {
		walker->coding_at = at + 18;
		walker->fields++;
	}
	return HEAD_ON;
}

/* The number at `at`, or -1 where anything else is. */
static __always_inline u64 number_at(struct scratch *scratch, u64 at)
{
	u64 value = 0;
	u32 digits = 0;
	u8 byte;

	for (int i = 0; i < 16; i++) {
		OPAQUE(at);
		if (at >= CAPTURE_LIMIT)
			return -1;
		byte = scratch->bytes[at];
		at++;
		if (byte >= '0' && byte <= '9') {
			value = value * 10 + byte - '0';
			digits++;
		} else if (byte == '\r' || byte == '\n') {
			return digits ? value : -1;
		} else if (byte != ' ' || digits) {
			return -1;
		}
	}
	return -1;
}

static __always_inline bool chunked_at(struct scratch *scratch, u64 at)
{
	u64 word;
	u8 end;

	OPAQUE(at);
	if (at >= CAPTURE_LIMIT)
		return false;
	if (scratch->bytes[at] == ' ')
		at++;
	word = *(u64 *)(scratch->bytes + at);
	end = word >> 56;
	/* "chunked" */
	return ((word | LOWER) & 0xffffffffffffffULL) == 0x64656b6e756863ULL && (end == '\r' || end == '\n');
}

/*
 * A call that begins with a head: where that ends, and what follows. Large calls are captured up to HEAD_WINDOW by now,
 * small ones whole.
 */
int tail_head(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *scratch = this_scratch();
	struct walker *walker;
	struct call_record *record;
	struct span span = {};
	u32 state = HEAD_ON;
	u64 content = -1, end, after;
	bool chunked = false;
	u8 *bytes;

	if (!scratch)
		return 0;
	walker = &scratch->walker;
	record = &scratch->record;
	bytes = scratch->bytes;
	for (int i = 0; i < HEAD_STEPS; i++) {
		state = head_step(scratch, walker->captured);
		if (state != HEAD_ON)
			break;
	}
	if (state == HEAD_ON && walker->turns && walker->turns--)
		tail_programs.call(ctx, TAIL_HEAD);
	end = walker->head_at;
	OPAQUE(end);
	if (state == HEAD_OVER && walker->fields == 1 && end < CAPTURE_LIMIT &&
	    /* No content: 1xx, 204, 304 (RFC 9112 6.3). Perhaps none: another head follows at once, as after HEAD. */
	    !(*(u32 *)bytes == WORD_HTTP && (bytes[9] == '1' || bytes[9] == '3' || (bytes[9] == '2' && bytes[11] == '4'))) &&
	    !(end + 4 <= walker->captured && *(u32 *)(bytes + end) == WORD_HTTP)) {
		if (walker->coding_at)
			chunked = chunked_at(scratch, walker->coding_at);
		else
			content = number_at(scratch, walker->length_at);
	}
	end = walker->head_at;
	after = record->size - record->offset - end;
	if (chunked) {
		walker->walk.state = WALK_CHUNKS;
		walker->walk.phase = CHUNK_SIZE;
		walker->walk.wanted = 0;
		walker->walk.digits = 0;
		walker->walk.left = 0;
		walker->skip = record->offset + end;
		if (!walker->whole)
			walker->captured = end;
		tail_programs.call(ctx, TAIL_CHUNKS);
		return 0;
	}
	if ((s64)content >= 0 && content >= after) {
		walker->walk.left = content - after;
		walker->walk.state = walker->walk.left ? WALK_CONTENT : WALK_NONE;
		if (!walker->whole && walker->captured > end + BEHIND_HEAD)
			walker->captured = end + BEHIND_HEAD;
	} else if (!walker->whole && walker->limit > walker->captured) {
		span.base = walker->base;
		span.segments = walker->segments;
		span.size = record->size;
		walker->captured = copy_span(scratch, &span, record->offset + walker->captured,
					     walker->limit - walker->captured, walker->captured);
		/* The head is longer than what was copied; it is read anew, for its last line was not all there. */
		if (state == HEAD_CUT && walker->turns && walker->turns--) {
			walker->head_at = 0;
			walker->fields = 0;
			walker->length_at = 0;
			walker->coding_at = 0;
			tail_programs.call(ctx, TAIL_HEAD);
		}
	}
	walker->rest = 0;
	finish(ctx, scratch, 0);
	return 0;
}

#endif
