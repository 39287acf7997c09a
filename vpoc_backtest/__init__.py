"""Every result comes with the checks that could refute it.

`import vpoc_backtest as vb` gives the names of daily use; each module is loaded when one of its names is touched.
"""
__version__ = "0.2.0"

import importlib
import sys
import types

TYPE_CHECKING = False  # type checkers take it for true and follow these imports; at run time nothing is imported
if TYPE_CHECKING:
    from .backtest import BacktestConfig as BacktestConfig, run_backtest as run_backtest
    from .causality import check_causality as check_causality
    from .data import BadData as BadData, ContractSpec as ContractSpec, ES as ES, NQ as NQ
    from .data import add_sessions as add_sessions, random_walk as random_walk, sample_market as sample_market
    from .data_quality import data_quality as data_quality
    from .evidence import examine as examine, placebo_test as placebo_test
    from .explore import explore as explore
    from .features import FilterConfig as FilterConfig
    from .layouts import sniff_layout as sniff_layout
    from .ml_backtest import load_run as load_run, run_pipeline as run_pipeline
    from .next_session import next_orders as next_orders
    from .orders import check_signals as check_signals
    from .performance import compare as compare
    from .profiles import composite_profile as composite_profile, volume_profiles as volume_profiles
    from .readers import read_bars as read_bars, read_vix as read_vix
    from .report_page import save_report as save_report
    from .rolls import front_month as front_month
    from .run_config import RunConfig as RunConfig, load_market as load_market
    from .signals import SignalRules as SignalRules, explain_signals as explain_signals
    from .signals import make_signals as make_signals
    from .sweeps import plot_sweep as plot_sweep, sweep as sweep
    from .tpo import plot_tpo as plot_tpo
    from .trade_audit import audit_trades as audit_trades
    from .trade_lists import read_trades as read_trades
    from .verdict import recommendation as recommendation, verdict as verdict
    from .vpoc import naked_vpocs as naked_vpocs, plot_migration as plot_migration, plot_profile as plot_profile
    from .vpoc import profile_levels as profile_levels, session_levels as session_levels

_HOMES = {
    'backtest': 'BacktestConfig run_backtest',
    'causality': 'check_causality',
    'data': 'BadData ContractSpec ES NQ add_sessions random_walk sample_market',
    'data_quality': 'data_quality',
    'evidence': 'examine placebo_test',
    'explore': 'explore',
    'features': 'FilterConfig',
    'layouts': 'sniff_layout',
    'ml_backtest': 'load_run run_pipeline',
    'next_session': 'next_orders',
    'orders': 'check_signals',
    'performance': 'compare',
    'profiles': 'composite_profile volume_profiles',
    'readers': 'read_bars read_vix',
    'report_page': 'save_report',
    'rolls': 'front_month',
    'run_config': 'RunConfig load_market',
    'signals': 'SignalRules explain_signals make_signals',
    'sweeps': 'plot_sweep sweep',
    'tpo': 'plot_tpo',
    'trade_audit': 'audit_trades',
    'trade_lists': 'read_trades',
    'verdict': 'recommendation verdict',
    'vpoc': 'naked_vpocs plot_migration plot_profile profile_levels session_levels',
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = ['__version__', *sorted(_HOME)]


def __getattr__(name):
    "Load the module of a name of daily use when the name is first touched."
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    "A package in which `explore` is the function, although a module has the same name."

    def __setattr__(self, name, value):
        if _HOME.get(name) == name and isinstance(value, types.ModuleType): value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
