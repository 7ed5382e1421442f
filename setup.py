"""Puts configs/ into the wheel; all else is in setup.cfg."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=['dynllm_jax*']),
    'dynllm_jax.configs',
  ],
  package_dir={'dynllm_jax.configs': 'configs'},
)
