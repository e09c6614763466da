"""The study engine beside stock Ray Tune + OptunaSearch + Ray Train, on one private Ray head, in one run.

    python -m benchmarks.engine gangs        time between trials, whole studies, memory
    python -m benchmarks.engine overhead     what one-second trials cost besides their second
    python -m benchmarks.engine work         training of a study beside T0 + N T1

Stock runs the same training on the same workers with the same lean environment variables: a Tune function
trial that starts a Ray Train run, the base step already trained.  It runs with `reuse_actors=True`, which
saves it two seconds a trial; `overhead` shows it also without, which is Tune's default.
"""
