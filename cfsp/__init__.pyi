"""The public names for type checkers, which cannot follow `__getattr__`."""

from cfsp.allocators.base import Allocator as Allocator
from cfsp.api import apply as apply
from cfsp.api import plan as plan
from cfsp.api import save as save
from cfsp.checkpoints.load import load as load
from cfsp.compensation.base import Compensation as Compensation
from cfsp.criteria.base import Criterion as Criterion
from cfsp.data.calibration import RandomWindows as RandomWindows
from cfsp.data.texts import Files as Files
from cfsp.data.texts import Hub as Hub
from cfsp.data.texts import Stdlib as Stdlib
from cfsp.data.texts import Text as Text
from cfsp.evaluation.base import Evaluator as Evaluator
from cfsp.exports.base import Exporter as Exporter
from cfsp.exports.base import FolderExporter as FolderExporter
from cfsp.exports.base import Saved as Saved
from cfsp.loggers.base import Logger as Logger
from cfsp.model.families import LAYOUTS as LAYOUTS
from cfsp.model.families import Layout as Layout
from cfsp.model.families import Place as Place
from cfsp.model.find_sites import find_sites as find_sites
from cfsp.model.shapes import BlockShape as BlockShape
from cfsp.model.shapes import Shapes as Shapes
from cfsp.model.sites import Site as Site
from cfsp.model.views import UnitView as UnitView
from cfsp.plans.plan import Cut as Cut
from cfsp.plans.plan import PrunePlan as PrunePlan
from cfsp.records.record import Metric as Metric
from cfsp.records.record import Record as Record
from cfsp.recovery.base import Recovered as Recovered
from cfsp.recovery.base import Recovery as Recovery
from cfsp.schedules.base import Schedule as Schedule
from cfsp.statistics.base import Statistic as Statistic
from cfsp.statistics.collect import STATISTICS as STATISTICS
from cfsp.statistics.collect import collect as collect
from cfsp.statistics.inputs import InputStatistic as InputStatistic
from cfsp.tables.compare import compare as compare
from cfsp.tables.compare import frame as frame
from cfsp.training.base import Setting as Setting

__version__: str
