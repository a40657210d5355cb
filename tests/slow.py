"""Files of tests that take more than about two seconds, longest first.

``make quick`` leaves them out; ``make test`` begins with them, so that no long one is left to a
single worker at the end. A file's name without its ending stands for it, in whatever folder.
"""

SLOW = """
    test_estimate test_plan test_tutorial test_compare test_distill test_session test_families
    test_verify test_recorder test_corruption test_distill_lean test_launch test_two_loras
    test_export test_main test_trials test_judge test_previews test_adapter_folder test_pack
    test_evaluate test_stacking test_selective test_train_teacher test_capture test_adapter
    test_bench_command test_shortage test_denoisers test_checkpoints test_large_teachers
    test_calibrate test_bundled_teacher test_story test_resume test_report test_student
    test_sample test_student_pipeline test_old_runs test_probe test_speed_command test_dial
    test_findings test_copy test_push test_open test_rounds test_gather test_live
    test_dial_pictures test_picture_cache test_page test_dry_run test_guidance test_probe_checks
    test_memory test_portable test_already_distilled
    test_optimizer test_trackers test_batches test_quiet test_prediction_check
    test_weight_files test_single_file test_refused_verbs test_few_steps test_demo
""".split()  # noqa: SIM905 - read as a line

SLOW_FOLDERS = ("zoo", "browser")
