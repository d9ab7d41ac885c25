"""Starts the page: `python app/app.py --student FOLDER_OR_ID ...`; `--help` tells the rest. What a Space runs."""

if __name__ == "__main__":  # a process that reads an upload imports this file anew, and nothing with it
    from page import main

    main()
