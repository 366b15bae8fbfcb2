# shellcheck shell=bash
# What all scripts here share: the site, the program with or without a container, submission, job card, preemption.
# A script calls `begin KIND STAGES "$@"`: KIND (CPU, GPU, TRAIN, NET) says which of the site's options its job takes,
# and the first of STAGES is what it does unless its second argument names another.
# shellcheck disable=SC2034  # much of this is for the scripts that source it
set -euo pipefail

die() {
    echo "cloudjob: $*" >&2
    exit 2
}

writable() { # writable FOLDER: makes it where it is missing
    mkdir -p "$1" 2>/dev/null || return 1
    [[ -w "$1" ]]
}

begin() {
    local stages=" $2 "
    kind=$1 script=${BASH_SOURCE[1]}
    shift 2
    if [[ "${1:-}" == --help ]]; then # the comment at the head of the script
        sed -n '2,/^[^#]\|^#SBATCH/{/^# /s/^# //p}' "$script"
        exit 0
    fi
    sbatch_options=() retry_lost=0 offset=0
    while [[ "${1:-}" == -* ]]; do
        case $1 in
            --offset=*) offset=${1#*=} ;; # of the items of this part of an array; see `submit`
            *) sbatch_options+=("$1") ;;
        esac
        shift
    done
    config=${1:-configs/north_slope.yaml}
    arguments=("${@:2}")
    read -r stage _ <<<"$stages"
    if ((${#arguments[@]})) && [[ "${arguments[0]}" != -* ]]; then
        stage=${arguments[0]}
        arguments=("${arguments[@]:1}")
        [[ "$stages" == *" $stage "* ]] || die "$stage: this script does one of:$stages"
    fi
    [[ -e "$config" ]] || die "$config: no such file or run folder (in $PWD)"
    run_dir=$config
    if [[ ! -d "$config" ]]; then run_dir=runs/$(basename -- "$config" .yaml); fi
    read_site
    writable "$run_dir/jobs" ||
        die "$run_dir cannot be written to: make runs/ a link to a folder on scratch, or name a run folder there"
    find_program
    if [[ -n "${SLURM_JOB_ID:-}" ]]; then
        job_card
        if [[ -n "${CLOUDJOB_AFTER:-}" ]]; then look_before "$CLOUDJOB_AFTER"; fi
    fi
}

# --- the site -------------------------------------------------------------------------------------------------------
read_site() { # CLOUDJOB_SITE: a name in slurm/sites, or the path of such a file
    SITE_JOB=() SITE_CPU=() SITE_GPU=() SITE_TRAIN=() SITE_NET=() SITE_MODULES='' SITE_BINDS='' SITE_APPTAINER=(--nv)
    SITE_MPI=pmi2 SITE_INTERFACE='' SITE_SCRATCH=''
    site=${CLOUDJOB_SITE:-}
    if [[ -n "$site" && "$site" != */* ]]; then site=slurm/sites/$site.env; fi
    if [[ -n "$site" ]]; then
        [[ -f "$site" ]] || die "CLOUDJOB_SITE=$CLOUDJOB_SITE: no file $site; there are: $(cd slurm/sites && echo *.env)"
        # shellcheck source=/dev/null
        source "$site"
    fi
    SITE_TRAIN=("${SITE_GPU[@]}" "${SITE_TRAIN[@]}")
    if [[ -n "$SITE_MODULES" ]]; then
        # shellcheck disable=SC2086
        module load $SITE_MODULES || die "module load $SITE_MODULES failed; see SITE_MODULES in $site"
    fi
    if [[ -n "$SITE_INTERFACE" ]]; then export NCCL_SOCKET_IFNAME=$SITE_INTERFACE GLOO_SOCKET_IFNAME=$SITE_INTERFACE; fi
    if [[ -n "$SITE_SCRATCH" && -n "${SLURM_JOB_ID:-}" ]]; then
        writable "$SITE_SCRATCH" ||
            die "SITE_SCRATCH=$SITE_SCRATCH cannot be written to on $(hostname -s); name another folder in $site"
        export TMPDIR=$SITE_SCRATCH
    fi
}

find_program() { # cloudjob=(command): in the image, in .venv, or on the PATH
    local place account=~/.cloudjob binds=() # the account's token and connections, where the configuration says no other
    if [[ -z "${CLOUDJOB_IMAGE:-}" ]] || ! mkdir -p "$account" 2>/dev/null; then account=; fi
    # A comma or colon may be in them.
    for place in "$PWD" "$(realpath -- "$run_dir")" ${SITE_SCRATCH:+"$SITE_SCRATCH"} ${account:+"$account"}; do
        binds+=(--mount "type=bind,\"src=${place//\"/\"\"}\",\"dst=${place//\"/\"\"}\"")
    done
    if [[ -n "$SITE_BINDS" ]]; then binds+=(--bind "$SITE_BINDS"); fi
    if [[ -n "${CLOUDJOB_IMAGE:-}" ]]; then
        [[ -e "$CLOUDJOB_IMAGE" ]] ||
            die "CLOUDJOB_IMAGE=$CLOUDJOB_IMAGE: no such image; build it with containers/build.sh, or copy it there"
        command -v apptainer >/dev/null ||
            die "no apptainer on $(hostname -s): name its module in SITE_MODULES, or unset CLOUDJOB_IMAGE"
        # Not --cleanenv: without SLURM_* and PMI_* each rank would believe to be alone.
        cloudjob=(apptainer exec --no-home "${binds[@]}" --pwd "$PWD" "${SITE_APPTAINER[@]}" "$CLOUDJOB_IMAGE" cloudjob)
    elif [[ -x .venv/bin/cloudjob ]]; then
        cloudjob=("$PWD/.venv/bin/cloudjob")
    elif command -v cloudjob >/dev/null; then
        cloudjob=(cloudjob)
    else
        die "no cloudjob: set CLOUDJOB_IMAGE to an image, or run make setup in $PWD"
    fi
}

examine() { # the quick part of the doctor, first: what is missing is said before a job waits or a GPU idles
    local settings=() code=0 i
    for ((i = 0; i < ${#arguments[@]}; i++)); do
        case ${arguments[i]} in
            --set) settings+=(--set "${arguments[i + 1]}") ;;
            --set=*) settings+=("${arguments[i]}") ;;
        esac
    done
    "${cloudjob[@]}" doctor "$config" --run-dir "$run_dir" --quick --quiet "${settings[@]}" >&2 || code=$?
    ((code != 4)) || die "mend what fails above, then submit again; all that is looked at: cloudjob doctor $config"
}

# --- submission -----------------------------------------------------------------------------------------------------
submit() { # submit KIND SCRIPT [options of sbatch] -- CONFIG STAGE ...: prints the id of the job, or ids ID:ID
    local -n of_kind="SITE_$1"
    local script=$2 options=("${SITE_JOB[@]}" "${of_kind[@]}") more=() array='' limit offset id ids=()
    shift 2
    while [[ "$1" != -- ]]; do
        case $1 in
            --array=*) array=${1#*=} ;;
            *) more+=("$1") ;;
        esac
        shift
    done
    shift
    limit=$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *\([0-9]*\).*/\1/p') || true
    if [[ -z "$array" || "$limit" == 0 ]]; then # a site without arrays: all items in one job
        # %A_%a, which prepare.sh and infer.sh have, makes no name where there is no array.
        submit_one 0 "$script" --output=%x-%j.out "${options[@]}" "${more[@]}" -- "$@"
        return
    fi
    while read -r offset array; do
        id=$(submit_one "$offset" "$script" "${options[@]}" --array="$array" "${more[@]}" -- "$@") || exit
        ids+=("$id")
    done < <(array_parts "$array" "${limit:-1001}")
    (IFS=:; echo "${ids[*]}")
}

submit_one() { # submit_one OFFSET SCRIPT [options of sbatch] -- CONFIG STAGE ...: prints the id of the job
    local offset=$1 script=$2 options=() id
    shift 2
    while [[ "$1" != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    if ((offset)); then set -- --offset="$offset" "$@"; fi
    command -v sbatch >/dev/null || die "no SLURM on $(hostname -s): sbatch is not on the PATH (is a module to be" \
        "loaded, or a login node to be used?). Without SLURM: $(without_slurm "$2" "$1")"
    # What this job was given must not become what the next one asks for.
    id=$(for name in ${!SLURM_@} ${!SRUN_@}; do [[ $name == SLURM_CONF ]] || unset "$name"; done
        sbatch --parsable "${options[@]}" "slurm/$script" "$@" 2>&1) || refused "$id"
    id=${id##*$'\n'}
    if ((offset)); then shift; fi
    note "${id%%;*}" "$(part_of "$2" "$offset")" submitted
    echo "${id%%;*}"
}

without_slurm() { # without_slurm STAGE CONFIG: the command that does the same here
    case $1 in
        fetch | pipeline) echo "cloudjob run $2" ;;
        train) echo "torchrun --nproc-per-node=gpu -m cloudjob train $2" ;;
        infer) echo "mpiexec -n 4 cloudjob infer $2" ;;
        *) echo "cloudjob $1 $2" ;;
    esac
}

array_parts() { # array_parts 0-2,7,1003-1005%4 1001: lines of OFFSET and indices below MaxArraySize: 0 0-2,7%4; 1001 2-4%4
    local limit=$2 throttle='' range first last step end block parts=()
    if [[ "$1" == *%* ]]; then throttle=%${1#*%}; fi
    for range in $(tr , ' ' <<<"${1%\%*}"); do
        IFS=:- read -r first last step <<<"$range"
        last=${last:-$first} step=${step:-1}
        while ((first <= last)); do
            block=$((first / limit))
            end=$((last < (block + 1) * limit ? last : (block + 1) * limit - 1))
            parts[block]+=,$((first % limit))
            if ((end > first)); then parts[block]+=-$((end % limit)); fi
            if ((end > first && step > 1)); then parts[block]+=:$step; fi
            first=$((first + ((end - first) / step + 1) * step))
        done
    done
    for block in "${!parts[@]}"; do echo "$((block * limit)) ${parts[block]#,}$throttle"; done
}

part_of() { # part_of STAGE OFFSET: the name under which cloudjob status shows this part of an array
    if (($2)); then echo "$1+$2"; else echo "$1"; fi
}

refused() { # what sbatch said, and what can be done about it
    local where=${site:-a site file (CLOUDJOB_SITE)} cure
    case $1 in
        *[Pp]artition*) cure="partitions here: $(sinfo -h -o %R | sort -u | xargs); set --partition in $where" ;;
        *[Gg]eneric*resource* | *[Gg]res* | *GRES* | *"node configuration"*)
            cure="what nodes have: $(sinfo -h -o '%R %c cores, %G' | sort -u | paste -sd ';'); see SITE_GPU in $where" ;;
        *"configuration source"*) cure="$(hostname -s) has the commands of SLURM and belongs to no cluster; log in to one" ;;
        *ccount*) cure="set --account in SITE_JOB of $where" ;;
        *) cure="see the options in $where" ;;
    esac
    die "sbatch refused: $1"$'\n'"cloudjob: $cure"
}

note() { # note JOB NAME EVENT: a line for cloudjob status, on a new line though the last was torn; no full disk ends a job
    local log=$run_dir/jobs/log.tsv start=''
    if [[ -s "$log" && -n "$(tail -c 1 "$log")" ]]; then start=$'\n'; fi
    printf '%s%(%s)T\t%s\t%s\t%s\n' "$start" -1 "$1" "$2" "$3" 2>/dev/null >>"$log" || true
}

say() { # say TEXT...: into the log of the job
    echo "$*" 2>/dev/null || true
}

items() { # items STAGE [--missing]: as indices for sbatch --array
    "${cloudjob[@]}" items "$1" "$config" --run-dir "$run_dir" --as-array "${@:2}" "${arguments[@]}"
}

submit_array() { # outside a job: as an array of what is missing; inside one: index=(the arguments that name its item)
    index=()
    if [[ -n "${SLURM_JOB_ID:-}" ]]; then
        if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then index=(--index "$((SLURM_ARRAY_TASK_ID + offset))"); fi
        return
    fi
    local missing
    missing=$(items "$stage" --missing)
    if [[ -z "$missing" ]]; then
        echo "$stage of $run_dir: nothing is missing"
        exit 0
    fi
    sbatch_options=(--array="$missing" "${sbatch_options[@]}")
    submit_myself
}

submit_myself() { # outside a job a script submits itself as the site wants it, and ends
    if [[ -n "${SLURM_JOB_ID:-}" ]]; then return; fi
    local id
    id=$(submit "$kind" "$(basename "$script")" "${sbatch_options[@]}" -- "$config" "$stage" "${arguments[@]}")
    echo "submitted $(basename "$script" .sh) of $run_dir as job ${id//:/ and }"
    echo "how far it is: ${cloudjob[*]} status $run_dir"
    exit 0
}

# --- inside a job ---------------------------------------------------------------------------------------------------
job_card() {
    local facts log
    job=$SLURM_JOB_ID
    if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    facts=$(scontrol show job -o "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID ") # of an array it shows all tasks
    log=$(sed 's/.*StdOut=//; s/ [A-Z][A-Za-z]*=.*//' <<<"$facts") # its path may have spaces
    label=$(part_of "$stage" "$offset")
    say "--- $SLURM_JOB_NAME $job, restart ${SLURM_RESTART_COUNT:-0}, $(date -Is)"
    say "    ${SLURM_NTASKS:-1} tasks on $SLURM_JOB_NODELIST, ${SLURM_CPUS_PER_TASK:-1} cores per task," \
        "GPUs per node: ${SLURM_GPUS_ON_NODE:-0}, until $(sed -n 's/.*EndTime=\([^ ]*\).*/\1/p' <<<"$facts")"
    say "    $config, run folder $run_dir, site ${site:-none}, ${cloudjob[*]}"
    note "$job" "$label" "started $log"
    stop=$PWD/$run_dir/jobs/STOP-$SLURM_JOB_ID
    if [[ "$run_dir" == /* ]]; then stop=$run_dir/jobs/STOP-$SLURM_JOB_ID; fi
    rm -f "$stop"
    export CLOUDJOB_STOP_FILE=$stop
    local end
    end=$(sed -n 's/.*EndTime=\([^ ]*\).*/\1/p' <<<"$facts")
    CLOUDJOB_DEADLINE=$(date -d "$end" +%s 2>/dev/null) && export CLOUDJOB_DEADLINE # SLURM says it itself since 22.05
    # The warning reaches this shell alone; the STOP file reaches every rank, whatever launched it.
    trap 'say "--- told to stop, $(date -Is)"; touch "$stop"' USR1 TERM
    trap 'code=$?; note "$job" "$label" "ended $code"; say "--- $job ended with $code after $SECONDS s"' EXIT
    check_restarts
}

# A job that comes back again and again and gets nowhere would do so for ever.
check_restarts() {
    local kept=$run_dir/jobs/restarts-$SLURM_JOB_ID seen='' count=0 now
    now=$( (cd -- "$run_dir"; find . \( -path ./jobs -o -path ./leases \) -prune -o -type f ! -name '.tmp-*' -print || true) |
        sort | cksum)
    if ((${SLURM_RESTART_COUNT:-0})) && [[ -e "$kept" ]]; then
        read -r count seen <"$kept"
        if [[ "$seen" == "$now" ]]; then ((count += 1)); else count=0; fi
    fi
    echo "$count $now" 2>/dev/null >"$kept" || true
    ((count < 3)) || die "restarted $count times without progress: ask for more time (--time) or an earlier warning" \
        "(--signal=B:USR1@SECONDS), see the log above, then submit again"
}

look_before() { # look_before STAGE: ends the chain of jobs where the stage before has made nothing
    # Of an array one task looks; the others each say what they lack.
    if [[ "${SLURM_ARRAY_TASK_ID:-}" != "${SLURM_ARRAY_TASK_MIN:-}" ]]; then return; fi
    if [[ "$(items "$1")" != "$(items "$1" --missing)" ]]; then return; fi
    sed "1,/^${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}\$/d" "$CLOUDJOB_CHAIN" | xargs -r scancel || true
    echo "cloudjob: $1 has made nothing; the jobs that come after this one are cancelled" >&2
    exit 3
}

need_gpu() {
    [[ -n "${SLURM_GPUS_ON_NODE:-${SLURM_JOB_GPUS:-}}" || -n "${CLOUDJOB_ON_CPU:-}" ]] || die "no GPU was given to this" \
        "job: ask for one (--gres=gpu:4; SITE_GPU in a site file), or compute on processors with CLOUDJOB_ON_CPU=1"
}

ranks() { # ranks OPTIONS... -- COMMAND...: all tasks of the job by srun, which must find each other
    export CLOUDJOB_RANKS=${SLURM_NTASKS:-1} APPTAINERENV_CLOUDJOB_RANKS=${SLURM_NTASKS:-1}
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it since SLURM 22.05
    local options=()
    while [[ "$1" != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    # Not --kill-on-bad-exit=1: it would kill a rank that is still saving when another has left with 75.
    run srun --kill-on-bad-exit=0 "${options[@]}" "$@"
}

run() { # run COMMAND...: the script ends with its exit code; 75 puts the job back into the queue, and so does a lost
    # rank (76, or killed by a signal) where the script says that this may help: retry_lost=1
    local pid code=0
    "$@" &
    pid=$!
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done # `wait` returns early when the trap fires
    code=0
    wait "$pid" || code=$?
    rm -f "$stop"
    if ((code == 75 || (retry_lost && (code == 76 || code > 128)))); then requeue; fi
    return "$code"
}

requeue() { # a job that was cancelled, or that SLURM requeues itself, is no longer RUNNING
    [[ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" == RUNNING ]] || return 0
    note "$job" "$label" requeued
    if scontrol requeue "$SLURM_JOB_ID"; then
        trap - EXIT
        sleep 60 # until SLURM ends this script
    else
        echo "cloudjob: this site does not requeue; submit the same script again, it goes on from here" >&2
    fi
}
