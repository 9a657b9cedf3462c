"""Menus and the files behind them: models, fonts, system prompts, the miniature's text encoder."""
