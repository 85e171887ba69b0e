# One task: it proves that it ran. Run by sh with the worker's KESTREL_* variables; PROOFS is a directory.
# Only built-in commands, for speed; each line is one write to a file opened for appending.
# $1: every how many-th task takes a while; $2: how many seconds.
read -r up _ </proc/uptime
exec >>"$PROOFS/${KESTREL_WORKER%%@*}"
printf 'S %s %s %s %s %s\n' "$KESTREL_JOB_ID" "$KESTREL_TASK_ID" "$KESTREL_ATTEMPT" "$KESTREL_WORKER" "$up"
if [ $((KESTREL_TASK_ID % $1)) = 0 ]; then sleep "$2"; fi
read -r up _ </proc/uptime
printf 'E %s %s %s %s %s\n' "$KESTREL_JOB_ID" "$KESTREL_TASK_ID" "$KESTREL_ATTEMPT" "$KESTREL_WORKER" "$up"
