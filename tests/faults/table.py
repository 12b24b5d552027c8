"""The table of faults: `make faults` runs it, docs/faults.md shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong."""

    what: str
    """What is done to rlft."""
    expected: str
    """What it does then."""
    tests: tuple[str, ...] = ()
    """`module::function` of each test that makes it happen, without `tests/test_` and `test_`."""
    missing: str = ""
    """Why no test makes it happen, where none does."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """What pytest calls the tests."""
        parts = (test.split("::") for test in self.tests)
        return tuple(f"tests/test_{module}.py::test_{function}" for module, function in parts)


PROCESSES = [
    Fault(
        "SIGKILL of rollout workers while they generate",
        "replaced; exactly their chunks are done again; the same curve",
        (
            "backends::killed_workers_are_replaced_and_leave_no_trace_in_the_curve",
            "ray_pool::lost_workers_are_replaced_and_exactly_their_chunks_redone",
            "chaos::the_curve_survives",
        ),
    ),
    Fault(
        "a worker that dies again and again",
        "the run stops by name after rollout.max_restarts",
        ("ray_pool::a_crash_loop_ends_with_its_cause", "backends::a_worker_that_dies_too_often_stops_the_run_by_name"),
    ),
    Fault(
        "a worker that hangs, or is stopped (SIGSTOP)",
        "killed and replaced after rollout.deadline_s; one too many names the tasks",
        (
            "ray_pool::a_hang_that_is_one_too_many_names_the_tasks",
            "ray_pool::a_worker_that_hangs_while_it_loads_is_replaced",
        ),
    ),
    Fault(
        "a machine of the cluster dies",
        "its chunks are done elsewhere; the same curve",
        ("nodes::a_killed_node_leaves_no_trace_in_the_curve",),
    ),
    Fault(
        "SIGKILL or SIGSTOP of the raylet or the control service",
        "a named error in a bounded time, and the resume command; the resumed run ends with the same bytes",
        (
            "resume::a_run_that_lost_its_cluster_says_so_and_can_be_resumed",
            "cluster::a_cluster_that_lost_a_process_ends_in_a_bounded_time_and_says_so",
        ),
    ),
    Fault(
        "the process of vLLM dies, or vLLM fails",
        "named, with the last that it printed; a process that died is a lost worker",
        (
            "vllm_process::a_process_that_ends_is_a_lost_engine_with_what_it_printed",
            "vllm_process::an_exception_is_an_error_with_what_it_printed",
        ),
    ),
    Fault(
        "a learner process dies or is silent",
        "the group ends by name",
        (
            "learner_group::a_dead_process_ends_the_group_by_name",
            "learner_group::a_silent_process_ends_the_group_by_name",
        ),
    ),
    Fault(
        "SIGKILL of the driver at every file that it writes",
        "the resumed run ends with the same bytes; no process is left",
        (
            "resume::every_moment_at_which_something_was_written_can_be_resumed_from",
            "resume::a_killed_run_ends_like_one_that_was_not",
            "resume::a_killed_driver_leaves_no_process",
            "cluster::a_private_cluster_is_private_and_leaves_nothing",
        ),
    ),
    Fault(
        "Ctrl-C, SIGTERM, SIGHUP",
        "a checkpoint of the last step (the one before, if a step takes more than 15 s to end), no process left, the "
        "resume command; a second one ends it at once",
        (
            "resume::a_signal_ends_everything_and_says_how_to_go_on",
            "interrupts::a_stopped_run_keeps_its_last_whole_step_and_ends_the_same",
            "interrupts::a_signal_ends_the_program_with_a_shells_exit_code",
            "interrupts::the_second_signal_ends_it_at_once",
        ),
    ),
    Fault(
        "two drivers on one run directory",
        "the second is refused",
        ("resume::a_second_driver_is_refused", "run::one_driver_at_a_time"),
    ),
    Fault(
        "another number of workers, other backends, a second time",
        "the same numbers",
        ("backends::ray_gives_the_run_that_inline_gives",),
    ),
    Fault(
        "an object of Ray's store is lost, or the store is full",
        "the chunk is done again, or a typed failure",
        missing="Ray keeps what a chunk returns inside its reply; the store holds adapters only, of a few MB",
    ),
    Fault(
        "Ray does not start, as when the clock jumps meanwhile",
        "ends after three minutes and says so; nothing is left behind",
        ("cluster::ray_that_does_not_start_ends_the_driver_with_a_message",),
    ),
    Fault(
        "the clock jumps while a run waits",
        "nothing: waits use the monotonic clock (but Ray's own, which keep the true time in this test)",
        (
            "faults::a_clock_that_jumps_does_not_show_in_a_run",
            "faults::a_clock_that_jumps_ends_no_deadline_early_or_late",
        ),
    ),
]
FILES = [
    Fault(
        "a byte of a checkpoint flipped, its end cut off, a file gone",
        "named; the one before is used and said; --strict refuses",
        (
            "resume::a_damaged_checkpoint_is_passed_over",
            "resume::strict_refuses_an_older_checkpoint",
            "checkpoint::a_damaged_snapshot_is_named_and_the_one_before_is_used",
        ),
    ),
    Fault(
        "all checkpoints damaged or gone, a damaged line in metrics.jsonl",
        "refused with a way out; nothing is deleted",
        ("resume::records_that_are_damaged_are_refused_and_not_deleted",),
    ),
    Fault(
        "half a line at the end of metrics.jsonl or events.jsonl",
        "mended; what is made again is moved aside",
        ("resume::a_torn_last_line_is_mended", "resume::what_is_made_again_is_moved_aside"),
    ),
    Fault(
        "a full disk",
        "the last good checkpoint stays; an error with path and free bytes",
        (
            "faults::a_full_disk_is_named_with_its_bytes",
            "checkpoint::a_full_disk_leaves_the_last_snapshot",
            "checkpoint::a_file_that_could_not_be_written_leaves_the_old_one",
        ),
    ),
    Fault(
        "a folder that may not be written",
        "an error with the path",
        ("faults::a_folder_that_may_not_be_written_is_named",),
    ),
    Fault(
        "a damaged adapter",
        "a rollout worker refuses it; a resumed run writes its last one again; reading names the file",
        (
            "errors::a_damaged_adapter_is_refused_by_the_worker",
            "faults::a_damaged_adapter_of_a_finished_run_is_noticed",
        ),
    ),
    Fault(
        "a pickle where weights are expected, a model that brings Python",
        "refused with how to convert it; no code runs",
        (
            "pretrained::a_folder_with_pickled_weights_only_is_refused_with_how_to_convert_it",
            "pretrained::an_adapter_that_is_pickled_only_is_refused",
            "pretrained::code_beside_a_model_that_is_known_never_runs",
            "pretrained::a_model_that_needs_its_own_code_is_refused_without_a_question",
        ),
    ),
    Fault(
        "a cached model or kernel library that was changed",
        "said, and made again",
        (
            "pretrained::a_cached_model_that_was_changed_is_made_again",
            "kernel_library::a_library_that_is_not_what_was_written_is_built_again_and_said",
        ),
    ),
    Fault(
        "no compiler, one that fails, one that hangs",
        "torch computes, which is said",
        (
            "kernel_library::without_a_compiler_torch_computes",
            "kernel_library::a_compiler_that_fails_is_named",
            "kernel_library::a_compiler_that_hangs_is_ended_with_its_children",
        ),
    ),
    Fault(
        "no network",
        "what the cache holds, or one clear error",
        ("sources::an_offline_hub_id_says_what_to_do_instead", "sources::a_hub_that_never_answers_costs_seconds"),
    ),
]
CHANGES = [
    Fault(
        "rate, seed, adapter, reward file, environment file or model changed between stop and resume",
        "refused with the differences; --fork NAME goes on as a run of its own",
        (
            "provenance::what_decides_the_numbers_may_not_change",
            "provenance::a_fork_goes_on_under_another_config_and_says_where_from",
            "provenance::a_changed_reward_can_be_forked",
        ),
    ),
    Fault(
        "kernels turned off, another version of a package",
        "an event that the curves mark",
        ("provenance::what_only_computes_may_change_and_is_marked",),
    ),
    Fault(
        "a setting that config.yaml would not give back (.inf, dates, bytes, sets)",
        "refused with file, line and key",
        ("config::an_argument_that_a_config_yaml_would_not_give_back_is_refused",),
    ),
    Fault(
        "a misspelt key, a contradiction",
        "file, line, key, and what was meant",
        (
            "config::an_unknown_key_is_refused_with_its_line_and_what_was_meant",
            "config::contradictions_are_refused_with_a_way_out",
        ),
    ),
]
REWARDS = [
    Fault(
        "a reward raises, hangs (in C, too), dies, returns NaN, text or too few values",
        "a typed failure with a program that repeats it; siblings are scored; it enters no mean and no baseline",
        (
            "scoring::every_misbehaviour_is_typed_and_siblings_are_scored",
            "attacks::an_attack_is_contained",
            "scoring::a_list_of_length_one_fails_all_eight",
            "errors::failures_enter_no_baseline",
            "errors::a_failure_is_reproduced_by_its_program",
        ),
    ),
    Fault(
        "too many failures, in a step or on held-out tasks",
        "the run stops; an accuracy says how many samples are missing in it",
        (
            "errors::too_many_failures_stop_the_run_and_nothing_is_lost",
            "errors::failures_on_heldout_tasks_are_in_every_number_a_reader_sees",
        ),
    ),
    Fault(
        "rewards of 1e308",
        "a typed failure: nothing that is made of rewards overflows",
        (
            "errors::each_failure_is_a_row_with_its_kind_and_a_way_to_see_it",
            "errors::the_largest_rewards_that_are_accepted_can_be_trained_on",
        ),
    ),
    Fault(
        "an environment or a tool raises, or answers nonsense",
        "its sample fails alone, with the traceback; the policy is told what a tool said",
        (
            "episodes::an_environment_that_raises_fails_its_sample_alone",
            "episodes::an_answer_that_makes_no_sense_fails_the_sample",
            "tools::what_goes_wrong_in_a_call_is_a_message",
            "tools::a_malformed_call_is_told_to_the_policy",
        ),
    ),
    Fault(
        "a reward that gives the same sample another score each time, none, or one value for all",
        "`rlft reward check` says so; a run looks at its rewards before it starts",
        (
            "reward_check::a_bug_is_found_and_the_reward_named",
            "reward_check::a_run_looks_at_its_rewards_before_it_starts",
        ),
    ),
    Fault(
        "a policy that games its reward",
        "the samples with the highest rewards are in the report; a reward of weight 0 shows what is not trained on",
        missing="whether a reward means what its author meant is for a reader of the samples to say",
    ),
    Fault(
        "one call of many hangs, dies, or blocks the others that wait with it",
        "it alone fails; those of its message are made again",
        (
            "scoring::of_many_calls_in_a_message_only_the_culprit_fails",
            "scoring::one_bad_coroutine_harms_no_other",
        ),
    ),
    Fault(
        "rewards that hang on every sample",
        "scoring stops as soon as more than scoring.max_failed have failed",
        ("scoring::scoring_stops_when_too_many_have_failed",),
    ),
    Fault(
        "a reward's process that grows without end",
        "killed above scoring.memory_mb; the sample that it works on has failed",
        ("config_leaves::a_setting_changes_something",),
    ),
    Fault(
        "a judge's server that is down, slow, or has changed; a budget that is spent",
        "a failure of kind `server`, never a number; known replies are not asked again; drift is a metric",
        (
            "openai::a_judge_that_is_down_or_slow_is_an_error",
            "openai::what_was_asked_is_not_asked_again",
            "openai::a_judge_that_has_changed_shows",
            "openai::a_spent_budget_is_no_number",
        ),
    ),
    Fault(
        "all groups with equal rewards",
        "no update, not even by momentum; said after guards.steps_without_signal",
        ("errors::equal_rewards_change_nothing", "guards::steps_without_an_update_are_counted_across_a_resume"),
    ),
]
TRAINING = [
    Fault(
        "a loss or gradient that is not finite",
        "skipped with its batch kept, parameters unchanged; three in a row stop the run",
        ("learner_group::an_update_that_is_not_finite_is_skipped_by_all",),
    ),
    Fault(
        "a rate far too high: KL, entropy or parameters run away",
        "an event, a stop, and the last adapter and checkpoint from before",
        (
            "guards::a_policy_that_ran_away_stops_the_run_and_a_calm_fork_goes_on",
            "guards::parameters_that_are_not_finite_always_stop",
            "guards::bounds",
        ),
    ),
    Fault(
        "an engine that ignores an adapter, or applies it twice",
        "found after the publication; the run stops before any sample",
        (
            "weight_proof::a_stale_engine_is_named",
            "weight_proof::an_adapter_that_is_applied_twice_is_found_out",
            "weight_proof::a_fault_is_found_in_bfloat16",
        ),
    ),
    Fault(
        "a worker that missed an adapter, or samples with another one",
        "the run stops before anything is trained on them",
        ("errors::a_worker_that_missed_a_publication_stops_the_run", "errors::samples_of_a_stale_adapter_are_refused"),
    ),
    Fault(
        "another version of a package without a private name that rlft uses",
        "an error that says which versions have it",
        (
            "private_names::a_name_that_is_gone_says_what_to_install",
            "private_names::an_option_that_ray_does_not_have_any_more_is_said",
            "private_names::processes_of_ray_that_have_other_names_are_said",
        ),
    ),
]
DATA = [
    Fault(
        "special tokens in prompts, demonstrations, observations and calls of tools",
        "they stay text, and are counted",
        (
            "special_tokens::what_a_message_spells_stays_text",
            "special_tokens::no_text_gets_a_special_token_of_its_own",
            "special_tokens::a_run_says_how_many_prompts_spell_special_tokens",
        ),
    ),
    Fault(
        "a broken line, a missing column, a source that cannot be read",
        "refused with file and line, or with what the source lacks",
        ("dataset::errors_name_file_and_line", "dataset::errors_name_what_is_wrong_with_a_source"),
    ),
    Fault(
        "null questions, the same prompt with another answer, look-alike prompts",
        "refused or counted with file and line; look-alikes stay on one side of the split",
        (
            "dataset::a_null_is_not_the_word_none",
            "dataset::the_same_prompt_with_another_answer_is_refused_or_counted",
            "dataset::prompts_that_nobody_can_tell_apart_are_on_one_side_of_the_split",
        ),
    ),
    Fault(
        "byte order marks, Latin-1, UTF-16",
        "read, or refused with how to convert",
        (
            "dataset::a_byte_order_mark_is_no_part_of_the_data",
            "dataset::text_in_another_encoding_is_refused_with_how_to_convert_it",
        ),
    ),
    Fault(
        "empty prompts, duplicate ids, prompts that are too long",
        "refused with the task before anything starts",
        ("errors::an_environment_that_cannot_work_is_refused",),
    ),
    Fault(
        "HTML, terminal escapes and broken Unicode that a model wrote",
        "inert on the page, the terminal and in files",
        (
            "report::whatever_was_written_by_others_is_inert",
            "run::text_that_is_no_unicode_costs_no_samples",
            "hostile_texts::a_run_of_hostile_rollouts_is_kept_and_its_report_is_inert",
        ),
    ),
    Fault(
        "hostile texts: escapes, broken Unicode, 100 kB words, deep nesting, huge numbers, programs, templates",
        "whoever reads one gives a value or says what is wrong, soon; no special token, escape or script of it acts",
        (
            "hostile_texts::each_reader_with_the_corpus",
            "hostile_texts::each_reader_with_texts_that_are_made",
            "hostile_texts::the_sandbox_with_the_corpus",
        ),
    ),
    Fault(
        "files that are no text: bytes that are no UTF-8, open quotes, fields that are too long",
        "read, or refused with the file",
        ("hostile_texts::bytes_that_are_no_text",),
    ),
    Fault(
        "arithmetic with huge exponents or digits, such as 1e999999999",
        "refused at once, by the calculator as well as by the reward",
        ("builtin_environments::numbers_that_no_computer_holds_are_refused_at_once",),
    ),
]
CONTAINMENT = [
    Fault(
        "model-written code: fork bomb, memory, disk, daemons, host files and packages, sockets, kill",
        "contained, with a verdict, soon after the deadline",
        (
            "sandbox::resources_are_bounded",
            "sandbox::disks_are_small",
            "sandbox::a_fork_bomb_is_small_and_gone",
            "sandbox::a_daemon_ends_with_the_sandbox",
            "sandbox::the_host_is_out_of_sight",
            "sandbox::only_the_standard_library_is_seen",
            "sandbox::killing_everybody_kills_nobody_else",
        ),
    ),
    Fault(
        "model-written code: memory of many processes, shared or in files, of System V, in nested namespaces",
        "bounded together: killed above the limit; what belongs to no process is refused",
        (
            "sandbox::memory_is_bounded_together",
            "sandbox::memory_that_processes_share_counts_once",
            "sandbox::memory_that_belongs_to_no_process_is_refused",
            "sandbox::namespaces_are_not_nested",
        ),
    ),
    Fault(
        "model-written code: memory that is taken between two looks",
        "where control groups can be made, the kernel ends it; the group goes with it",
        (
            "sandbox::a_control_group_bounds_what_no_look_sees",
            "sandbox::a_group_whose_maker_was_killed_is_removed_by_the_next_process",
        ),
    ),
    Fault(
        "model-written code that games its checker",
        "no reward: expected answers never enter the sandbox",
        ("sandbox::no_trick_is_a_reward", "sandbox::expected_answers_never_enter"),
    ),
    Fault(
        "no sandbox on the machine, or one that cannot be watched",
        "code rewards refuse to start",
        (
            "sandbox::without_a_sandbox_code_is_refused",
            "sandbox::a_machine_without_a_filter_has_no_sandbox",
            "sandbox::where_memory_cannot_be_seen_there_is_no_sandbox",
        ),
    ),
    Fault(
        "a reward leaves daemons behind (two forks, a session of their own, no environment)",
        "they end with its process, also when that crashes or the driver is killed",
        (
            "containment::daemons_of_a_reward_end_with_its_process",
            "attacks::an_attack_is_contained",
            "containment::daemons_end_when_the_driver_is_killed",
        ),
    ),
    Fault(
        "a scoring process sends the driver a pickle, nonsense, too much, or never the end",
        "a typed failure of its sample; nothing of it runs",
        (
            "reward_answers::no_answer_harms_the_driver",
            "reward_answers::an_answer_that_trickles_in_ends_at_the_deadline",
        ),
    ),
    Fault(
        "a reward prints gigabytes",
        "nothing waits; its log keeps the beginning and the end, 10 MB, and says how much is missing",
        (
            "containment::what_rewards_print_is_bounded_and_its_end_is_kept",
            "containment::printing_much_holds_nobody_up",
        ),
    ),
    Fault(
        "a reward prints or raises what a model wrote: terminal escapes, halves of surrogate pairs",
        "printing never fails; control characters in the log are spelt out",
        ("hostile_texts::a_reward_prints_and_raises_whatever_it_was_given",),
    ),
    Fault(
        "keys and other secrets in the environment",
        "scoring processes get those alone that scoring.environment names",
        (
            "containment::secrets_reach_a_reward_only_by_name",
            "containment::a_failure_for_want_of_a_variable_says_what_to_set",
            "containment::a_judge_without_its_key_says_which_setting_it_needs",
        ),
    ),
    Fault(
        "another user of the machine",
        "cannot enter the cluster's folder; without the token no client is let in",
        (
            "cluster::a_private_cluster_is_private_and_leaves_nothing",
            "nodes::a_client_without_the_token_is_refused",
        ),
    ),
    Fault(
        "RAY_ADDRESS set, another cluster on the machine",
        "a private cluster is private",
        ("cluster::a_private_cluster_is_not_one_that_runs_already",),
    ),
]
SECTIONS: dict[str, Sequence[Fault]] = {
    "Processes": PROCESSES,
    "Files": FILES,
    "Changes between stop and resume": CHANGES,
    "Rewards": REWARDS,
    "Training": TRAINING,
    "Data": DATA,
    "Containment": CONTAINMENT,
}
ALL = [fault for faults in SECTIONS.values() for fault in faults]


def page() -> str:
    """The tables of docs/faults.md."""
    parts = []
    for title, faults in SECTIONS.items():
        rows = [f"| {f.what} | {f.expected} | {_shown(f)} |" for f in faults]
        parts.append(
            "\n".join(
                [f"## {title}", "", "| what goes wrong | what happens | shown by |", "| --- | --- | --- |", *rows]
            )
        )
    return "\n\n".join(parts) + "\n"


def _shown(fault: Fault) -> str:
    if fault.missing:
        return f"no test: {fault.missing}"
    return ", ".join(f"`{node.removeprefix('tests/')}`" for node in fault.nodes)
