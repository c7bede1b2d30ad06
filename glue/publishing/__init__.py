"""What a person reads of a result: report, plots, model card. Holds no time, host, job id or path."""
