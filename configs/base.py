"""Every key and its default. An experiment is a thin file over this one: it changes what it needs.

A key that may also be None is a placeholder of its type. Any key can be given on the command line, for example
`--config.objective.p=None` or `--config.evaluation.steps=1,10`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of pictures, and all training noise
    config.steps = 10_000  # updates in all
    config.epochs = placeholder(int)  # instead of steps: passes over the training pictures
    config.batch_size = 16  # pictures an update, over all devices
    config.accumulation = 1  # microbatches that each update is computed in
    config.image_size = 128  # side of the square training crop, pixels
    config.compute_dtype = "auto"  # float32, bfloat16, float64; auto is bfloat16 on GPU and TPU, float32 on CPU
    config.deterministic = False  # on GPU: the same bits in every run, which CPUs give anyway; slower
    config.ema_decay = 0.9999

    config.task = ConfigDict()
    config.task.name = "super_resolution"  # or unconditional
    config.task.scale = 4
    config.task.kernel = "pil_bicubic"  # or pil_bilinear, pil_lanczos, pil_box
    config.task.residual = False  # model the difference to the enlarged picture instead of the picture
    config.task.gain = 1.0  # the difference is multiplied by this

    config.schedule = ConfigDict()
    config.schedule.name = "linear"  # or cosine, flow
    config.schedule.num_steps = 2000
    config.schedule.beta_start = 1e-6  # linear
    config.schedule.beta_end = 1e-2
    config.schedule.beta_min = 1e-4  # cosine
    config.schedule.beta_max = 0.9999
    config.schedule.continuous = True  # draw levels between table entries, not only at them
    config.schedule.per_example = True  # draw t for every example, not one for the batch

    config.objective = ConfigDict()
    config.objective.name = "dream"  # or standard, conservative_dream
    config.objective.kind = "eps"  # what the network predicts: eps, x0, v, flow
    config.objective.distance = "l1"  # or l2
    config.objective.weight = "power"  # or constant, linear, exponential, step
    config.objective.p = placeholder(float)
    config.objective.p = 1.0  # power: lam = sigma^p; None switches DREAM off
    config.objective.rate = 5.0  # exponential
    config.objective.threshold = 0.5  # step
    config.objective.minimum = 0.0  # the weight runs between these
    config.objective.maximum = 1.0
    config.objective.start_epoch = 0  # the standard objective before
    config.objective.start_step = 0  # the same in steps; the later of the two counts
    config.objective.ramp_epochs = 0  # the weight grows over these, counted from epoch 0
    config.objective.mix = 0.7  # conservative_dream: the share of the standard loss
    config.objective.estimate_share = 1.0  # dream: share of each batch that gets the self-estimate, like 0.5
    config.objective.estimate_pick = "random"  # which of them; or heaviest, those with the largest weights
    config.objective.estimate_every = 1  # dream: all steps but every so many-th are of the standard objective
    config.objective.estimate_dtype = "same"  # dream: of the self-estimate; or bfloat16, ... as for compute_dtype
    config.objective.min_snr_gamma = placeholder(float)  # weight losses by min(snr, gamma) on x0's error; 5.0 is usual

    config.network = ConfigDict()
    config.network.name = "sr3"  # or generation
    config.network.channels = 64
    config.network.channel_multipliers = (1, 2, 4, 8, 8)
    config.network.attention_resolutions = (16,)  # feature-map sides at the training size
    config.network.num_res_blocks = 2
    config.network.norm_groups = 32
    config.network.num_heads = 8  # generation
    config.network.dropout = 0.0
    config.network.weights = placeholder(str)  # sr3: start from official PyTorch weights, .pth or .safetensors
    config.network.patch = 1  # sr3: work on patches of this many pixels a side, for a cheap network
    config.network.remat = False  # recompute blocks in the backward pass to save memory

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # or adamw, sgd
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.0  # adamw
    config.optimizer.clip = placeholder(float)  # the gradient's largest global norm

    config.data = ConfigDict()
    config.data.folder = placeholder(str)  # of pictures to train on; else tfds; else the photos within scikit-image
    config.data.eval_folder = placeholder(str)  # of pictures to evaluate on; else a share of folder is held out
    config.data.eval_percent = 10
    config.data.tfds = placeholder(str)  # name of a prepared TensorFlow Datasets dataset
    config.data.tfds_dir = placeholder(str)
    config.data.image_key = placeholder(str)
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.resize = placeholder(int)  # bring the shorter side to this many pixels first
    config.data.flip = True  # mirror at random
    config.data.skip_unreadable = False
    config.data.cache_dir = placeholder(str)  # prepared folders; ~/.cache/dream_jax
    config.data.workers = 2

    config.mesh = ConfigDict()
    config.mesh.shard = 1  # devices that each copy of the training state is spread over

    config.log_every = 100
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000
    config.checkpoint.keep = 2  # the newest
    config.checkpoint.keep_best = 0  # and so many with the lowest mean loss since the line of the log before
    config.checkpoint.directory = placeholder(str)  # workdir/checkpoints; may be a bucket

    config.supervision = ConfigDict()
    config.supervision.hang_minutes = placeholder(float)
    config.supervision.hang_minutes = 20.0  # without a step: the run says where it hangs, and ends; None is never
    config.supervision.first_minutes = 60.0  # the same for the first step, which is compiled
    config.supervision.heartbeat_seconds = 30  # of silence, after which a process is lost and ends the others
    config.supervision.meet_seconds = 300  # that processes wait for each other at the start

    config.watch = ConfigDict()  # for numbers that go wrong, looked at every log_every steps
    # At a loss or gradient that is not finite, which is never applied: stop; skip the step; or rollback, to go on from
    # the last checkpoint without that step.
    config.watch.not_finite = "stop"
    config.watch.rise = "warn"  # when the loss rises and stays up: off, warn, or rollback to before it
    config.watch.deviations = 1.0  # what a loss may lie above its mean, in mean absolute deviations of its logarithm
    config.watch.threshold = 20.0  # the sum of what is beyond that, at most 3 a step, that makes a rise
    config.watch.memory = 1000  # steps that the mean goes back
    config.watch.warmup = 200  # steps before the loss is watched
    config.watch.limit = 5  # stop at so many steps in a row that are not finite, or rollbacks to one checkpoint

    config.sampling = ConfigDict()  # how pictures are drawn: samples, evaluate, upscale, generate
    config.sampling.spacing = "uniform_t"  # or uniform_logsnr, quadratic, karras
    config.sampling.eta = 0.0  # the noise that ddim adds: from 0, none, to 1, as much as ddpm
    config.sampling.momentum = 0.8  # ghvb: above 0, to 1, which is none; below 1 damps its moves
    config.sampling.clip = "range"  # of predicted pictures, to [-1, 1]; or dynamic (thresholding), none
    config.sampling.percentile = 0.995  # dynamic: the share of values that is kept
    config.sampling.eps_scale = 1.0  # epsilon scaling: predicted noise is divided by eps_scale + eps_scale_slope t / T
    config.sampling.eps_scale_slope = 0.0
    config.sampling.shift_window = 0.0  # time-shift: times, in steps of the schedule, to choose from; 0 is off
    config.sampling.shift_cutoff = 0.0  # time-shift: only at times above it
    config.sampling.project = False  # super-resolution: pull predictions to what shrinks to the low-resolution picture
    config.sampling.start_seed = placeholder(int)  # one starting noise for all pictures, instead of one for each

    config.samples = ConfigDict()  # grids drawn during training
    config.samples.every = 1000
    config.samples.count = 4
    config.samples.sampler = "ddim"
    config.samples.steps = 20

    config.evaluation = ConfigDict()
    config.evaluation.samplers = ("ddim", "ddpm")
    config.evaluation.steps = (1, 5, 10, 50)  # network evaluations
    config.evaluation.pictures = 100  # at most
    config.evaluation.crop = placeholder(int)  # side of the centre crop; image_size
    config.evaluation.batch_size = 8
    config.evaluation.seeds = (0,)  # of the noise; with several, tables hold mean and spread
    config.evaluation.protocol = "standard"  # or dream_official: with the conventions of that code
    config.evaluation.learned = ()  # measures that need networks: lpips_alex, lpips_vgg, lpips_squeeze, inception
    config.evaluation.weights = placeholder(str)  # folder of these networks' weights; ~/.cache/dream_jax/weights
    return config.lock()
