/* SPDX-License-Identifier: GPL-2.0-only */
/* Every map, with key, value, lifetime and bound. Upper-case words are set by the loader (rover_plugin/capture). */

/*
 * processes: tgid -> enum watch. Bound MAX_PROCESSES. Written by user space from the process feed, and here at exec and
 * fork so that a new process is seen from its first call; deleted at exit. Full: counted, the process is not watched.
 */
BPF_HASH(processes, u32, u32, MAX_PROCESSES);

enum watch {
	WATCH_DECIDED = 1,     /* the feed named it */
	WATCH_PROVISIONAL = 2, /* just born: captured until the feed says otherwise */
};

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

/*
 * connections: struct sock * -> state. Made at connect, accept or first I/O of a watched process, deleted with its
 * close record, at the latest when the kernel destroys the socket. Bound MAX_CONNECTIONS. Full: counted, the connection is not seen.
 */
BPF_HASH(connections, u64, struct connection, MAX_CONNECTIONS);

struct policy {
	u32 until[2]; /* by direction: bytes before this position need not be copied */
	u8 mode[2];   /* enum policy_mode by direction */
	u8 frames;    /* as CONNECTION_FRAMES, found out later */
	u8 pad[5];
};

enum policy_mode {
	POLICY_ALL = 0,
	POLICY_SKIP = 1,  /* copy nothing before `until` */
	POLICY_NEVER = 2, /* copy nothing any more */
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

enum statistic {
	STAT_RECORDS = 0,          /* put into a ring */
	STAT_RING_FULL = 1,        /* refused by a full ring: lost */
	STAT_CONNECTIONS_FULL = 2, /* connection not seen */
	STAT_THREADS_FULL = 3,     /* call not seen */
	STAT_PROCESSES_FULL = 4,   /* process not watched */
	STAT_NOT_TCP = 5,          /* calls on sockets of another kind: ignored */
	STAT_COMPAT = 6,           /* calls of 32-bit programs: ignored */
	STAT_FAULT = 7,            /* bytes of a call that could not be copied */
	STATISTICS = 8,
};

/* statistics: enum statistic -> count, per CPU. */
BPF_PERCPU_ARRAY(statistics, u64, STATISTICS);

/*
 * scratch_map: cpu -> the record being built. An array and not per-CPU memory, whose elements may not exceed 32 KiB. Used
 * by sys_exit only, which the kernel runs with preemption off and never nested on one CPU.
 * The buffer is twice CAPTURE_LIMIT so that the verifier sees offset + length in bounds without relating the two.
 */
struct scratch {
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
	struct close_record close;
};
BPF_ARRAY(events, union event, CPUS *PROGRAMS);

/* tail_programs: enum tail -> program. Filled once by user space. What is too much for the verifier in one piece. */
BPF_PROG_ARRAY(tail_programs, 1);

enum tail {
	TAIL_MESSAGES = 0,
};

static __always_inline void count(u32 which)
{
	u64 *value = statistics.lookup(&which);
	if (value)
		*value += 1;
}
