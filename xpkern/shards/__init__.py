"""Survey runs: every file of spectra becomes one shard of the catalogue, whatever dies on the way.

The unit of work is one file. Its shard is written under a temporary name and renamed, and a marker then says that it is
done and of what: the fingerprint of its input and of the settings. So a run may be killed at any moment and started
again, by as many processes, jobs or Dask workers as one likes: what is done is not done again, and what was made by
other settings is never taken for done.
"""

from xpkern.shards.ledger import Ledger, State
from xpkern.shards.run import RunSummary, run_survey
from xpkern.shards.settings import RunSettings, load_settings

__all__ = ["Ledger", "RunSettings", "RunSummary", "State", "load_settings", "run_survey"]
