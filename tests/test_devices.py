"Levels on a graphics card: the bits of the processor. Skipped where there is none."
import numpy as np
import pytest
import torch

from vpoc_backtest.data import random_walk
from vpoc_backtest.vpoc import SPREADS, profile_from_trades, session_levels, volume_profiles

cards = torch.cuda.device_count()
card = pytest.mark.skipif(not cards, reason='PyTorch sees no graphics card (CUDA or ROCm) on this machine')


@card
@pytest.mark.parametrize('spread', SPREADS)
@pytest.mark.parametrize('device', ['cuda', 'cuda:0'])
def test_card_gives_the_bits_of_the_processor(spread, device):
    bars = random_walk(200, bars_per_session=390)
    bars['volume'] *= np.where(np.arange(len(bars)) % 997, 1, 1000)
    assert (volume_profiles(bars, spread=spread, device=device).units == volume_profiles(bars, spread=spread).units).all()
    assert session_levels(bars, spread=spread, device=device).equals(session_levels(bars, spread=spread))


@card
def test_card_counts_trades():
    bars = random_walk(20)
    trades = bars.reset_index(names='ts').rename(columns={'close': 'price', 'volume': 'size'})
    assert (profile_from_trades(trades, device='cuda').units == profile_from_trades(trades).units).all()


@pytest.mark.skipif(bool(cards), reason='there is a graphics card')
@pytest.mark.parametrize('device', ['cuda', 'cuda:1'])
def test_without_a_card_one_sentence_says_so(device):
    with pytest.raises(ValueError, match="PyTorch sees no graphics card here: use device='cpu'"): session_levels(random_walk(2), device=device)
