"""Run the engine server."""

from engine.server.main import main

raise SystemExit(main())
