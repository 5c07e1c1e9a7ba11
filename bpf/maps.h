/* SPDX-License-Identifier: GPL-2.0-only */
/* Every map, with key, value, lifetime and bound. Upper-case words are set by the loader (rover_plugin/capture). */

/*
 * processes: tgid -> enum watch. Bound MAX_PROCESSES. Written by user space from the process feed, and here at exec and
 * fork so that a new process is seen from its first call; deleted at exit. Full: counted, the process is not watched.
 */
BPF_HASH(processes, u32, u32, MAX_PROCESSES);

enum watch {
	WATCH_NOT = 0, /* never in `processes` */
	WATCH_DECIDED = 1,     /* the feed named it */
	WATCH_PROVISIONAL = 2, /* just born: captured apart, until the feed decides */
};

#define EXECUTABLE_NAME 64 /* with its NUL; a longer name stands for all that begin like it */

struct executable {
	char name[EXECUTABLE_NAME];
};

/*
 * executables: file name of a program, without its folder -> enum watch of who executes it. Filled by user space from
 * what the feed says of its rules, bound MAX_EXECUTABLES. What is not in it gets other_executables.
 */
BPF_HASH(executables, struct executable, u32, MAX_EXECUTABLES);

/* other_executables: enum watch of who executes anything else, at index 0. Set by user space before anything runs. */
BPF_ARRAY(other_executables, u32, 1);

/*
 * call_classes: system call number of this architecture -> enum call_class. Filled once by user space, bound SYSCALLS.
 */
BPF_ARRAY(call_classes, u8, SYSCALLS);

struct thread {
	u64 enter_ns;
	/*
	 * What the last call, a close(2) or its kin, releases: a struct sock, CLOSES_ANY or 0. Kept beyond the call: a file
	 * may be released after its exit tracepoint. exec and exit, which are no calls of ours, make an end of it.
	 */
	u64 close_sk;
	u32 call;     /* enum call_class of the call it is in, CALL_NONE outside */
	/* How far tail_messages has come: */
	u32 message_call;
	u32 messages;
	u32 message;
	u32 position;
};

#define CLOSES_ANY 1 /* no address of a struct sock */

/*
 * threads: tid -> the call it is in. Entries are made at a thread's first call, reused by every later one (a lookup is
 * much cheaper than insert and delete) and deleted when the thread exits. Bound MAX_THREADS. Full: counted, no record.
 */
BPF_HASH(threads, u32, struct thread, MAX_THREADS);

enum walk_state {
	WALK_NONE = 0,    /* nobody knows what the next byte is */
	WALK_CONTENT = 1, /* HTTP/1 content, then a message */
	WALK_CHUNKS = 2,  /* HTTP/1 content in chunks */
	WALK_FRAMES = 3,  /* HTTP/2 */
};

enum chunk_phase {
	CHUNK_END = 0,    /* before the line end after a chunk's content */
	CHUNK_END_LF = 1, /* within it */
	CHUNK_SIZE = 2,   /* in the digits of a chunk-size line */
	CHUNK_SPACE = 3,  /* behind them */
	CHUNK_EXTENSION = 4,
	CHUNK_SIZE_LF = 5, /* within the line's end */
};

/* Where one direction is in its protocol's framing. Written by sys_exit and what it tail-calls. */
struct walk {
	u64 left;     /* bytes until the next byte of framing: of content, of a chunk's content, of a frame's payload */
	u32 position; /* of the next byte: a call that begins elsewhere follows bytes that nobody has walked */
	u32 wanted;   /* FRAMES: how many of the `left` bytes, from the next one on, are to be copied. CHUNKS: size read so far */
	u8 state;     /* enum walk_state */
	u8 phase;     /* FRAMES: bytes of a cut frame header in `head`. CHUNKS, with nothing left: enum chunk_phase */
	u8 digits;    /* CHUNKS: of the size */
	u8 head[9];
	u8 pad[4];
};

/* How much somebody has in his ring, at most: what he put since a position that the reader has not passed yet. */
struct share {
	u64 began;  /* position of the ring from which `now` counts: all of `before` was put before it */
	u64 last;   /* behind what was put last */
	u32 before; /* bytes */
	u32 now;    /* bytes */
};

struct connection {
	u64 id;
	u64 flags;    /* CONNECTION_*; 64 bits because clang 14 has no narrower atomics for BPF */
	u64 start_ns; /* connect or accept, entry */
	u64 open_ns;  /* established, failed or met */
	u32 tgid;     /* process that opened or met it */
	u8 cause;     /* enum open_cause */
	u8 muted[2];  /* by direction: user space wants no bytes of it any more */
	u8 pad;
	u32 calls;
	s32 error;
	u32 written; /* positions it began at, or was met at */
	u32 read;
	u32 turned[2]; /* by direction: the other direction's position at the last call */
	u32 last_written; /* position the last written byte left, once the state is TCP_CLOSE: the kernel reuses the field */
	u8 held[2]; /* by direction: user space does not agree with the walk: none until it says where it is */
	u8 policy[2]; /* by direction: number of the one taken last */
	struct walk walks[2]; /* by direction */
	struct share share;   /* of its ring, as far as counted: bpf/share.h. Two CPUs may count at once: it is near enough */
};

#define CONNECTION_ANNOUNCED 1 /* its open record is in the ring, or about to be; retried at the next call while not */
#define CONNECTION_CLOSED 2    /* its close record is in the ring, or there is none to come */
#define CONNECTION_PENDING 4   /* connect(2) has begun, outcome unknown */
#define CONNECTION_FIN 8       /* our FIN is queued and has taken a sequence number */
#define CONNECTION_PEER_FIN 16 /* the peer's FIN may have come, and have taken a sequence number of what is read */
#define CONNECTION_DOWN 32     /* TCP_CLOSE was reached while its owner still held it */
#define CONNECTION_BY_PEER 64  /* by a reset or a time-out */
#define CONNECTION_PEER_ENDED 256 /* the peer's FIN came before its owner gave it up */
#define CONNECTION_SHUT_FIRST 512 /* its owner had shut its sending side down before that */
#define CONNECTION_FRAMES 128  /* began with HTTP/2's preface: what matters may be anywhere in a call */
#define CONNECTION_PROVISIONAL 1024 /* nobody has chosen its process yet: its records go into the provisional ring */

/*
 * connections: struct sock * -> state. Made at connect, accept or first I/O of a watched process, deleted with its
 * close record, at the latest when the kernel destroys the socket. Bound MAX_CONNECTIONS. Full: counted, the connection is not seen.
 */
BPF_HASH(connections, u64, struct connection, MAX_CONNECTIONS);

struct policy {
	u32 until[2]; /* by direction: bytes before this position need not be copied */
	u8 mode[2];   /* enum policy_mode by direction */
	u8 frames;    /* as CONNECTION_FRAMES, found out later */
	u8 number[2]; /* of each, never 0 and never the last one's: a policy is taken once, for positions come again */
	u8 pad[3];
};

enum policy_mode {
	POLICY_ALL = 0,
	POLICY_SKIP = 1,  /* copy nothing before `until`, where an HTTP/1 message begins */
	POLICY_NEVER = 2, /* copy nothing any more */
	POLICY_CHUNK = 3, /* a chunk's content ends at `until` */
	POLICY_FRAME = 4, /* a frame header begins at `until` */
	POLICY_COPY = 5,  /* what this side believes of the framing is wrong */
};

/*
 * policies: connection id -> capture policy. Written by user space only (no races with the kernel's own state), read
 * for large calls and every 16th small one; evicted least recently used, bound MAX_CONNECTIONS: losing one only means
 * copying more than needed.
 */
BPF_TABLE("lru_hash", u64, struct policy, policies, MAX_CONNECTIONS);

/* last_connection: the newest connection id, at index 0. */
BPF_ARRAY(last_connection, u64, 1);

enum program {
	PROGRAM_CALL = 0,  /* sys_exit */
	PROGRAM_STATE = 1, /* inet_sock_set_state */
	PROGRAM_END = 2,   /* tcp_destroy_sock */
	PROGRAM_RING = 3,  /* io_uring_complete */
	PROGRAMS = 4,
};

struct lane {
	u32 sequence; /* last number used */
	u32 unread;   /* bytes put since the reader was last woken */
};

/*
 * lanes: lane * SHARDS + shard -> its counts. A lane is one program on one CPU (cpu * PROGRAMS + program); the kernel never
 * nests a program on a CPU, so nothing here needs an atomic. Bound by the CPUs.
 */
BPF_ARRAY(lanes, struct lane, CPUS *PROGRAMS *SHARDS);

/*
 * shares: process id << 32 | shard -> what it has in that ring. Made and read only while a ring is more than a quarter
 * full (bpf/share.h); evicted least recently used, bound MAX_SHARES: losing one only means counting anew.
 */
#define MAX_SHARES 4096
BPF_TABLE("lru_hash", u64, struct share, shares, MAX_SHARES);

/* provisional_lanes: as `lanes`, of the records of processes that nobody has chosen yet. */
BPF_ARRAY(provisional_lanes, struct lane, CPUS *PROGRAMS *SHARDS);

enum statistic {
	STAT_RECORDS = 0,          /* put into a ring */
	STAT_RING_FULL = 1,        /* refused by a full ring: lost */
	STAT_CONNECTIONS_FULL = 2, /* connection not seen */
	STAT_THREADS_FULL = 3,     /* call not seen */
	STAT_PROCESSES_FULL = 4,   /* process not watched */
	STAT_NOT_TCP = 5,          /* calls on sockets of another kind: ignored */
	STAT_COMPAT = 6,           /* calls of 32-bit programs: ignored */
	STAT_FAULT = 7,            /* bytes of a call that could not be copied */
	STAT_PROVISIONAL = 8,      /* put into a provisional ring */
	STAT_PROVISIONAL_FULL = 9, /* refused by a full provisional ring: lost, if its process is chosen after all */
	STAT_SHARE = 10,           /* refused a ring that has room, because its connection or process has its share: lost */
	STATISTICS = 11,
};

/* statistics: enum statistic -> count, per CPU. */
BPF_PERCPU_ARRAY(statistics, u64, STATISTICS);

/* One call that moved bytes, */
struct io {
	u64 sk;
	u64 enter_ns;
	u32 call;
	u32 direction;
	u32 tgid;
	u32 tid;
	u32 position; /* of its first byte */
	u32 opposite; /* reached in the other direction */
	bool unreadable; /* bytes never were in the caller's memory */
};

/* and where these bytes are. */
struct span {
	u64 base;    /* user address of the buffer, or of the iovec array */
	u32 segments; /* iovec entries; 0 = `base` is the buffer itself */
	u32 size;    /* bytes the call moved in it */
};

/*
 * scratch_map: cpu -> the record being built. An array and not per-CPU memory, whose elements may not exceed 32 KiB. Used
 * by sys_exit only, which the kernel runs with preemption off and never nested on one CPU.
 * The buffer is twice CAPTURE_LIMIT so that the verifier sees offset + length in bounds without relating the two.
 */
struct walker {
	struct walk walk;
	u64 sk;
	u64 base; /* as in struct span */
	u32 segments;
	u32 segment;   /* next one */
	u64 address;   /* of the next byte, */
	u64 available; /* and how many there are in its segment */
	u64 rest;      /* bytes of the call that are still to be walked */
	u64 skip;      /* CHUNKS: bytes before the walk begins */
	u32 captured;
	u32 piece; /* where the present one begins in `bytes` */
	u32 unseen;
	u32 front; /* these three: see struct call_chunks */
	u32 passed;
	u32 content;
	u32 line_size;
	u32 ahead; /* bytes in `line` beyond `line_size` */
	u32 limit; /* what would be copied of the call without a walk */
	u8 whole;  /* all bytes are copied: only the state moves on */
	u8 cut;    /* the present line began in an earlier call */
	u8 turns;  /* tail calls that may still follow */
	u8 failed;
	u32 head_at;   /* where the search for a header section's end is, */
	u32 length_at; /* and where these fields' values begin */
	u32 coding_at;
	u32 fields;
	u8 head[24];  /* FRAMES: the frame header being put together */
	u8 line[128]; /* CHUNKS: the line being read */
};

struct scratch {
	struct walker walker;
	struct {
		struct io io;
		struct span span;
	} message; /* one of a vector, from tail_messages to tail_message */
	struct {
		u64 skip;
		u64 want;
		u32 limit;
		u32 way; /* enum tail */
		u8 flags;
	} plan; /* of put_call, here and not in registers for the reason copy_span gives */
	struct {
		u64 skip;
		u64 want;
		u64 copied;
	} cursor; /* of copy_span */
	struct call_record record;
	u8 bytes[2 * CAPTURE_LIMIT]; /* directly behind the record */
};
BPF_ARRAY(scratch_map, struct scratch, CPUS);

/*
 * events: cpu * PROGRAMS + program -> an open or close record being built; the stack of 512 bytes is too small for it.
 */
union event {
	struct open_record open;
	struct met_record met;
	struct close_record close;
};
BPF_ARRAY(events, union event, CPUS *PROGRAMS);

/* tail_programs: enum tail -> program. Filled once by user space. What is too much for the verifier in one piece. */
BPF_PROG_ARRAY(tail_programs, 5);

enum tail {
	TAIL_MESSAGES = 0,
	TAIL_HEAD = 1,
	TAIL_CHUNKS = 2,
	TAIL_FRAMES = 3,
	TAIL_MESSAGE = 4,
	TAIL_NONE = 5,
};

static __always_inline void count(u32 which)
{
	u64 *value = statistics.lookup(&which);
	if (value)
		*value += 1;
}
