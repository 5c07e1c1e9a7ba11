/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Processes that are born while we run. What no rule can choose is never watched; what one may choose is watched at once,
 * but its records go apart until the feed decides.
 */

static __always_inline void watch_as(u32 tgid, u32 watch)
{
	if (processes.update(&tgid, &watch))
		count(STAT_PROCESSES_FULL);
}

/* What the rules say of a program by the name of its file, as /proc/PID/exe ends with it. */
static __always_inline u32 watch_of(struct linux_binprm *program)
{
	struct file *file = READ(program->file);
	struct dentry *entry = 0;
	struct executable executable = {};
	const void *name = 0;
	u32 first = 0;
	u32 *watch;

	/* Not by READ: both are const in newer kernels, and what cannot change is 0 to the compiler for ever. */
	bpf_probe_read_kernel(&entry, sizeof(entry), (void *)&file->f_path.dentry);
	bpf_probe_read_kernel(&name, sizeof(name), (void *)&entry->d_name.name);
	bpf_probe_read_kernel_str(executable.name, sizeof(executable.name), name);
	watch = executables.lookup(&executable);
	if (!watch)
		watch = other_executables.lookup(&first);
	return watch ? *watch : WATCH_PROVISIONAL;
}

/* sched_process_exec(task, old_pid, bprm): another program, so whatever was decided before is void. */
int on_sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct task_struct *parent = READ(task->real_parent);
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct thread *thread = current_thread();
	u32 old = ctx->args[1];

	if (thread)
		thread->close_sk = 0;
	/* A thread that is not the leader takes its number; nothing else ends under the thread's own. */
	if (old != tgid)
		threads.delete(&old);
	if (tgid == AGENT_TGID || READ(parent->tgid) == AGENT_TGID)
		return 0;
	if (watch_of((struct linux_binprm *)ctx->args[2]) == WATCH_NOT)
		processes.delete(&tgid);
	else
		watch_as(tgid, WATCH_PROVISIONAL);
	return 0;
}

/*
 * sched_process_fork(parent, child): a child runs its parent's program and shares its sockets, so it is watched as its
 * parent is until it executes another. Threads are no concern.
 */
int on_sched_process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	u32 parent_tgid = bpf_get_current_pid_tgid() >> 32;
	u32 tgid = READ(child->tgid);
	u32 *watch;

	if (tgid != READ(child->pid))
		return 0;
	watch = processes.lookup(&parent_tgid);
	if (watch)
		watch_as(tgid, *watch);
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
