"""Files of tests that take more than about two seconds, longest first.

``make quick`` leaves them out; ``make test`` begins with them, so that no long one is left to a
single worker at the end. A file's name without its ending stands for it, in whatever folder.
"""

SLOW = """
    test_tutorial test_estimate test_plan test_families test_recorder test_launch test_distill
    test_verify test_previews test_export test_distill_lean test_adapter_folder test_story test_main
    test_large_teachers test_trials test_bench_command test_pack test_capture test_selective
    test_judge test_resume test_evaluate test_session test_stacking test_train_teacher
    test_denoisers test_report test_adapter test_student test_sample test_student_pipeline
    test_old_runs test_probe test_bundled_teacher test_speed_command test_calibrate
    test_dial test_findings test_copy test_push test_open test_rounds test_gather
    test_live test_dial_pictures test_picture_cache test_compare test_page test_dry_run
    test_guidance test_probe_checks test_checkpoints test_memory test_text_stage
    test_portable test_already_distilled test_denoiser_stage test_components test_optimizer
    test_corruption test_trackers test_batches test_quiet test_prediction_check
    test_weight_files test_single_file test_shortage test_refused_verbs test_few_steps
    test_two_loras test_demo
""".split()  # noqa: SIM905 - read as a line

SLOW_FOLDERS = ("zoo", "browser")
