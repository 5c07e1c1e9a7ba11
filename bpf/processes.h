/* SPDX-License-Identifier: GPL-2.0-only */
/* Processes that are born while we run are watched at once, until the feed decides. */

static __always_inline void watch_provisionally(u32 tgid)
{
	u32 watch = WATCH_PROVISIONAL;

	if (processes.update(&tgid, &watch))
		count(STAT_PROCESSES_FULL);
}

/* sched_process_exec(task, old_pid, bprm): another program, so whatever was decided before is void. */
int on_sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct task_struct *parent = READ(task->real_parent);
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct thread *thread = current_thread();

	if (thread)
		thread->close_sk = 0;
	if (tgid == AGENT_TGID || READ(parent->tgid) == AGENT_TGID)
		return 0;
	watch_provisionally(tgid);
	return 0;
}

/* sched_process_fork(parent, child): a child runs its parent's program and shares its sockets. Threads are no concern. */
int on_sched_process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = READ(child->tgid);

	if (tgid != READ(child->pid))
		return 0;
	if (watched(parent_tgid))
		watch_provisionally(tgid);
	else
		processes.delete(&tgid); /* left by an earlier process of this number */
	return 0;
}

/* sched_process_exit(task): once per thread. Its sockets are closed after this; that needs `connections` only. */
int on_sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct signal_struct *signal = READ(task->signal);
	u32 tid = READ(task->pid);
	u32 tgid = READ(task->tgid);

	threads.delete(&tid);
	if (READ(signal->live.counter) == 0)
		processes.delete(&tgid);
	return 0;
}
