"""Every setting, its range and its presets; free of torch. May import the settings of the other packages alone."""

from admrl.config.checks import check_config as check_config
from admrl.config.evaluation import EvaluationConfig as EvaluationConfig
from admrl.config.evaluation import ReferenceConfig as ReferenceConfig
from admrl.config.plain_data import from_dict as from_dict
from admrl.config.presets import PRESETS as PRESETS
from admrl.config.search import SearchConfig as SearchConfig
from admrl.config.training import MetaTrainConfig as MetaTrainConfig
from admrl.config.training import ResolveConfig as ResolveConfig
from admrl.config.training import SlboConfig as SlboConfig
from admrl.config.training import TaskGradientConfig as TaskGradientConfig
from admrl.config.training import VirtualTrainingConfig as VirtualTrainingConfig
